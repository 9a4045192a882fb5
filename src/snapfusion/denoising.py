"""What a UNet is trained to do: predict v (Eq. 6), or the noise where its checkpoint does that."""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from snapfusion.diffusion.schedule import Schedule, add_noise, shifted, velocity
from snapfusion.latents import HALF_MIRRORED, Cache, Shares, draw_examples


@dataclass(frozen=True)
class Batch:
    """Noisy latents and what is to be found in them."""

    latent: Tensor  # [B, C, h, w], z_t
    t: Tensor  # [B] int64
    embedding: Tensor  # [B, L, D]
    target: Tensor  # [B, C, h, w], v or the noise
    weight: Tensor  # [B]

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of its rows: a process's share."""
        return Batch(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def draw_batch(
    cache: Cache,
    schedule: Schedule,
    batch: int,
    seed: int,
    step: int,
    shares: Shares = HALF_MIRRORED,
    snr_gamma: float | None = None,
    shift: float = 1.0,
) -> Batch:
    """The batch of one step, chosen by (seed, step) alone; what loses its caption has the empty prompt.

    With `snr_gamma` the noise levels are weighted by min-SNR; else all alike, as the paper writes its losses. For
    `shift` see `shifted`: of all t a share shift / (1 + shift) is in the noisier half.
    """
    drawn = draw_examples(cache, batch, seed, step, shares)
    device, t = cache.latents.device, (shifted(drawn.place, shift) * schedule.num_train_timesteps).astype(np.int64)
    levels = (torch.from_numpy(level[t]).float().to(device) for level in (schedule.alphas, schedule.sigmas))
    alpha, sigma = (level[:, None, None, None] for level in levels)
    return Batch(
        latent=add_noise(drawn.x, drawn.noise, alpha, sigma),
        t=torch.from_numpy(t).to(device),
        embedding=drawn.dropped_embedding(),
        target=velocity(drawn.x, drawn.noise, alpha, sigma)
        if schedule.prediction_type == "v_prediction"
        else drawn.noise,
        weight=torch.ones(batch, device=device)
        if snr_gamma is None
        else min_snr_weight(schedule, t, snr_gamma).to(device),
    )


def check_shift(shift: float) -> None:
    """Raises `ValueError` for what `shifted` cannot take."""
    if not 0 < shift < math.inf:
        raise ValueError(f"got noise shift {shift}, expected a number above 0")


def min_snr_weight(schedule: Schedule, t: np.ndarray, gamma: float = 5.0) -> Tensor:
    """Min-SNR weights (arXiv 2303.09556, section 3.4) at steps `t` `[B]`: of x's error min(SNR, gamma).

    That is min(SNR, gamma) / (SNR + 1) for v, min(SNR, gamma) / SNR for the noise.
    """
    alpha2, sigma2 = schedule.alphas[t] ** 2, schedule.sigmas[t] ** 2
    # (SNR + 1) = 1 / sigma^2; written so that nothing is divided by sigma = 0.
    weight = np.minimum(alpha2, gamma * sigma2)
    return torch.from_numpy(weight if schedule.prediction_type == "v_prediction" else weight / alpha2).float()


def denoising_loss(unet: nn.Module, batch: Batch) -> Tensor:
    """Weighted mean of ||v_hat - v||^2 over the batch."""
    return weighted_error(unet(batch.latent, batch.t, batch.embedding).sample.float(), batch.target, batch.weight)


def weighted_error(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error of `[B, C, h, w]`, each row times its weight `[B]`."""
    return (weight * (prediction - target).square().mean(dim=(1, 2, 3))).mean()
