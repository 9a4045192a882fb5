"""What the UNet is trained to do: predict v (Eq. 6), every noise level weighted by min-SNR."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from snapfusion.diffusion.schedule import Schedule, add_noise, velocity
from snapfusion.latents import Cache, draw_examples
from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet


@dataclass(frozen=True)
class Batch:
    """Noisy latents and what is to be found in them."""

    latent: Tensor  # [B, C, h, w], z_t
    t: Tensor  # [B] int64
    embedding: Tensor  # [B, L, D]
    target: Tensor  # [B, C, h, w], v
    weight: Tensor  # [B]


def sticker_schedule() -> Schedule:
    """Cosine, with no signal left at the last step, so that sampling may start from noise alone (arXiv 2305.08891)."""
    return Schedule(
        beta_schedule="squaredcos_cap_v2",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def sticker_unet(channels: int, cross_attention_dim: int) -> ElasticUNet:
    """The stickers base's UNet: Stable Diffusion v1.5's topology at a fifth of its widths, heads 32 wide."""
    widths = (64, 128, 192, 256)
    return ElasticUNet(
        architecture=Architecture.sd15(widths),
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        cross_attention_dim=cross_attention_dim,
        num_attention_heads=tuple(width // 32 for width in widths),
        norm_num_groups=32,
    )


def draw_batch(
    cache: Cache, schedule: Schedule, batch: int, dropout: float, seed: int, step: int, recoloured: float
) -> Batch:
    """The batch of one step, chosen by (seed, step) alone; a share `dropout` has the empty prompt."""
    drawn = draw_examples(cache, batch, seed, step, dropout, recoloured)
    device, t = cache.latents.device, (drawn.place * schedule.num_train_timesteps).astype(np.int64)
    levels = (torch.from_numpy(level[t]).float().to(device) for level in (schedule.alphas, schedule.sigmas))
    alpha, sigma = (level[:, None, None, None] for level in levels)
    return Batch(
        latent=add_noise(drawn.x, drawn.noise, alpha, sigma),
        t=torch.from_numpy(t).to(device),
        embedding=drawn.dropped_embedding(),
        target=velocity(drawn.x, drawn.noise, alpha, sigma),
        weight=min_snr_weight(schedule, t).to(device),
    )


def min_snr_weight(schedule: Schedule, t: np.ndarray, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) / (SNR + 1) at steps `t` `[B]`: min-SNR weighting for v (arXiv 2303.09556, section 3.4)."""
    alpha2, sigma2 = schedule.alphas[t] ** 2, schedule.sigmas[t] ** 2
    # (SNR + 1) = 1 / sigma^2; written so that nothing is divided by sigma = 0.
    return torch.from_numpy(np.minimum(alpha2, gamma * sigma2)).float()


def denoising_loss(unet: nn.Module, batch: Batch) -> Tensor:
    """Weighted mean of ||v_hat - v||^2 over the batch."""
    prediction = unet(batch.latent, batch.t, batch.embedding).sample.float()
    return (batch.weight * (prediction - batch.target).square().mean(dim=(1, 2, 3))).mean()
