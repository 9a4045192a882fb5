"""ResNet-50 (He et al. 2015, arXiv:1512.03385) as Keras builds it, its batch norms folded into the convolutions.

torchvision is no dependency and its ResNet strides elsewhere: here the first 1x1 convolution of a stage has the stride.
"""

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from snapfusion.metrics.weights import resnet_weights

STAGES = ((2, 3, 64), (3, 4, 128), (4, 6, 256), (5, 3, 512))
"""Number in the names, blocks and inner width of each stage; it puts out four times the width."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; the shortcut has a 1x1 projection in the first block of a stage."""

    def __init__(self, inputs: int, width: int, stride: int, project: bool):
        super().__init__()
        self.branch2a = nn.Conv2d(inputs, width, 1, stride)
        self.branch2b = nn.Conv2d(width, width, 3, padding=1)
        self.branch2c = nn.Conv2d(width, 4 * width, 1)
        self.branch1 = nn.Conv2d(inputs, 4 * width, 1, stride) if project else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        inner = F.relu(self.branch2b(F.relu(self.branch2a(hidden))))
        return F.relu(self.branch2c(inner) + self.branch1(hidden))


class ResNet50(nn.Module):
    """Images to features, `[B, 3, 224, 224]` -> `[B, 2048]`: all but the classifier."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3)
        self.blocks = nn.ModuleDict()
        channels = 64
        for stage, blocks, width in STAGES:
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 2 else 1
                self.blocks[f"res{stage}{'abcdef'[block]}"] = Bottleneck(channels, width, stride, project=block == 0)
                channels = 4 * width

    def forward(self, image: Tensor) -> Tensor:
        """`image` is blue, green, red in 0..255, each less its mean over ImageNet (`features.load_resnet50`)."""
        # Keras pads the pooling with zeros; behind a ReLU that is what torch's padding with -inf gives too.
        hidden = F.max_pool2d(F.relu(self.conv1(image)), 3, 2, padding=1)
        for block in self.blocks.values():
            hidden = block(hidden)
        return hidden.mean(dim=(2, 3))


def load_resnet(cache: Path | None = None) -> ResNet50:
    """ResNet-50 with its ImageNet weights, in eval mode, frozen; `cache` as in `snapfusion.metrics.weights`."""
    network = ResNet50().eval().requires_grad_(False)
    network.load_state_dict(load_file(resnet_weights(cache)))
    return network
