"""How close an image is to the one it should be, pixel by pixel. LPIPS is in `lpips.py`."""

import torch
from torch import Tensor

WHITE = 254.5 / 255
"""From here on a channel rounds to 255 in an 8-bit picture."""


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, `[B, 3, H, W]` in 0..1 -> `[B]`; infinite where equal."""
    assert image.shape == reference.shape, (image.shape, reference.shape)
    return -10 * torch.log10((image - reference).square().mean(dim=(1, 2, 3)))


def psnr_drawn(image: Tensor, reference: Tensor) -> Tensor:
    """PSNR over the pixels whose reference is not pure white, `[B, 3, H, W]` in 0..1 -> `[B]`; NaN if all are white.

    Half of a sticker is white ground that any autoencoder gets right; this figure leaves it out.
    """
    assert image.shape == reference.shape, (image.shape, reference.shape)
    drawn = (reference.amin(dim=1) < WHITE).to(image.dtype)
    error = (image - reference).square().mean(dim=1)
    return -10 * torch.log10((error * drawn).sum(dim=(1, 2)) / drawn.sum(dim=(1, 2)))
