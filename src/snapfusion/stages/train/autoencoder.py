"""What the autoencoder is trained to do: give the picture back, from a latent that is nearly a unit Gaussian."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snapfusion.fit import WHOLE, Share
from snapfusion.metrics.lpips import Lpips
from snapfusion.model.decoder import PatchAutoencoderKL

LPIPS_SIDE = 64  # pixels; VGG on whole pictures would cost three times the autoencoder itself


def sticker_autoencoder(size: int = 256) -> PatchAutoencoderKL:
    """The stickers base's autoencoder: 256 px -> `[8, 16, 16]`, 6.5M parameters, no attention.

    Eight channels, since sixteen-fold downsampling leaves four of them too little room: see docs/log.md.
    """
    widths = (64, 128, 192)
    return PatchAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=16,
        sample_size=size,
        force_upcast=False,
        mid_block_add_attention=False,
        patch_size=4,
    )


def draw_crops(images: NDArray[np.uint8], seed: int, step: int, batch: int, side: int) -> Tensor:
    """A batch of square crops, `[B, 3, side, side]` in -1..1, chosen by (seed, step) alone; half of them mirrored."""
    draw = np.random.default_rng((seed, step))
    picks = draw.integers(len(images), size=batch)
    corners = draw.integers(images.shape[1] - side + 1, size=(batch, 2))
    crops = [images[n, y : y + side, x : x + side] for n, (y, x) in zip(picks, corners, strict=True)]
    flips = draw.random(batch) < 0.5
    stacked = np.stack([crop[:, ::-1] if flip else crop for crop, flip in zip(crops, flips, strict=True)])
    return torch.from_numpy(stacked.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1


class Reconstruct(nn.Module):
    """The autoencoder's loss as a module around it: L1 + MSE + `lpips_weight` LPIPS + `kl_weight` KL.

    Errors are of pictures in -1..1.
    KL is the mean over latent elements of KL(N(mean, var) || N(0, 1)), nats. Latents of a weak KL have heavy tails,
    which a diffusion model then draws badly.
    """

    def __init__(self, autoencoder: PatchAutoencoderKL, kl_weight: float, lpips_weight: float) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.kl_weight, self.lpips_weight = kl_weight, lpips_weight

    def forward(self, image: Tensor, lpips: Lpips, seed: int, share: Share = WHOLE) -> Tensor:
        """A share of a batch's images, `[B, 3, H, W]` in -1..1 -> scalar loss.

        `seed` draws the noise of all the batch's latents, and the corner for LPIPS.
        """
        generator = torch.Generator(image.device).manual_seed(seed)
        posterior = self.autoencoder.encode(image).latent_dist
        mean = posterior.mean
        noise = torch.randn(
            (share.count * len(mean), *mean.shape[1:]), generator=generator, device=mean.device, dtype=mean.dtype
        )
        latent = mean + posterior.std * noise[share.rows]
        drawn = self.autoencoder.decode(latent).sample.float()
        error = drawn - image
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        side = min(LPIPS_SIDE, image.shape[-1])
        y, x = torch.randint(image.shape[-1] - side + 1, (2,), generator=generator, device=image.device).tolist()
        corner = (slice(None), slice(None), slice(y, y + side), slice(x, x + side))
        seen = lpips(drawn[corner] / 2 + 0.5, image[corner] / 2 + 0.5).mean()
        return error.abs().mean() + error.square().mean() + self.lpips_weight * seen + self.kl_weight * kl
