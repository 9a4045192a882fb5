"""How far the student's images are from the teacher's, on the same latents: the loss, and the figures."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pixel_shuffle

from snapfusion.metrics.fidelity import psnr, psnr_drawn
from snapfusion.metrics.lpips import Lpips
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.sampling import decode

CORNER = 64  # pixels; VGG on whole pictures costs several times the decoders


def draw_rows(count: int, batch: int, seed: int, step: int) -> list[int]:
    """Which `batch` of `count` latents, and of their pictures, a step learns from: by (seed, step) alone."""
    return np.random.default_rng((seed, step)).integers(count, size=batch).tolist()


def image_of(decoder: nn.Module, vae: PatchAutoencoderKL, latent: Tensor) -> Tensor:
    """The image `[B, 3, H, W]`, about -1..1, of scaled latents, by a decoder in place of the autoencoder's own."""
    latent = latent / vae.config["scaling_factor"]
    if vae.post_quant_conv is not None:
        latent = vae.post_quant_conv(latent)
    return pixel_shuffle(decoder(latent), vae.patch_size)


def seen_distance(image: Tensor, target: Tensor, lpips: Lpips, seed: int, step: int) -> Tensor:
    """Mean LPIPS of images `[B, 3, H, W]` in -1..1 in a square of `CORNER` pixels, whose place (seed, step) gives."""
    side = min(CORNER, *image.shape[-2:])
    y, x = (int(np.random.default_rng((seed, step, axis)).integers(image.shape[axis] - side + 1)) for axis in (2, 3))
    square = (..., slice(y, y + side), slice(x, x + side))
    return lpips(image[square] / 2 + 0.5, target[square] / 2 + 0.5).mean()


def distillation_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean squared error between both decoders' images (section 3.3), -1..1 and not clamped."""
    return mse_loss(image.float(), target.float())


@torch.no_grad()
def closeness(
    student: PatchAutoencoderKL, teacher: PatchAutoencoderKL, latents: Tensor, lpips: Lpips, batch: int = 8
) -> dict[str, float]:
    """How near the student's pictures are to the teacher's, in float32: means over latents `[N, C, h, w]`, scaled.

    PSNR in dB on all pixels and on those where the teacher drew (pictures that it left white do not count), and LPIPS
    of all five levels.
    """
    found: dict[str, list[Tensor]] = {"psnr_db": [], "psnr_drawn_db": [], "lpips": []}
    for part in latents.split(batch):
        latent = part.float().to(teacher.device)
        image, target = decode(student, latent), decode(teacher, latent)
        found["psnr_db"].append(psnr(image, target))
        found["psnr_drawn_db"].append(psnr_drawn(image, target))
        found["lpips"].append(lpips(image, target))
    return {name: round(torch.cat(values).nanmean().item(), 4) for name, values in found.items()}
