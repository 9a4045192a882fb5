"""LPIPS: the distance between two images as a VGG16 sees it (Zhang et al. 2018, arXiv:1801.03924, Eq. 1)."""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from snapfusion.metrics.weights import lpips_weights

LEVELS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
"""Channels through each level of VGG16; a 2x2 max pool stands between two levels."""

# Mean and standard deviation of ImageNet for inputs in -1..1, as the published LPIPS has them.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """The distance as a module, so that gradients reach both images; its own weights are frozen.

    On a CPU with BF16 it is 2.3 times as fast with channels_last and bf16 autocast, and gives the same figure to 1%.

    Args:
        levels: how many of the five levels to compare. Fewer are faster (three cost three quarters of five) and
            give a smaller number, fit for a training loss but never for a report.
    """

    def __init__(self, levels: int = 5):
        super().__init__()
        if not 1 <= levels <= len(LEVELS):
            raise ValueError(f"got levels={levels}, expected 1 to {len(LEVELS)}")
        self.levels = nn.ModuleList(_level(channels) for channels in LEVELS[:levels])
        self.heads = nn.ParameterList(torch.zeros(channels[-1]) for channels in LEVELS[:levels])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, image_a: Tensor, image_b: Tensor) -> Tensor:
        """Distance between `image_a` and `image_b`.

        Both are `[B, 3, H, W]` in 0..1, H and W at least 16; gives `[B]`, 0 where they are equal.
        """
        assert image_a.shape == image_b.shape, (image_a.shape, image_b.shape)
        a, b = self._normalise(image_a), self._normalise(image_b)
        distance = image_a.new_zeros(len(image_a))
        for index, (level, head) in enumerate(zip(self.levels, self.heads, strict=True)):
            if index:
                a, b = F.max_pool2d(a, 2), F.max_pool2d(b, 2)
            a, b = level(a), level(b)
            difference = (_unit(a.float()) - _unit(b.float())).square()
            distance = distance + torch.einsum("bchw,c->bhw", difference, head).mean(dim=(1, 2))
        return distance

    def _normalise(self, image: Tensor) -> Tensor:
        return (2 * image - 1 - self.get_buffer("shift")) / self.get_buffer("scale")


def _level(channels: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _unit(features: Tensor) -> Tensor:
    # The root is kept away from 0, where its gradient is infinite: a patch of pure white can be all zeros at a level.
    return features / ((features.square().sum(dim=1, keepdim=True) + 1e-20).sqrt() + 1e-10)


def load_lpips(levels: int = 5, cache: Path | None = None) -> Lpips:
    """Builds LPIPS (VGG16) with the published weights, in eval mode.

    Args:
        levels: see `Lpips`.
        cache: folder of the fetched weights; None means the user's own (see `snapfusion.metrics.weights`).
    """
    lpips = Lpips(levels)
    state = load_file(lpips_weights(cache))
    lpips.load_state_dict({name: state[name] for name in lpips.state_dict()})
    return lpips.eval()
