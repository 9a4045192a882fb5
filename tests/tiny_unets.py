"""Elastic UNets of any architecture at tiny size, and what they are asked to predict."""

from typing import Any

import torch
from torch import Tensor

from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet

SMALL = {"sample_size": 8, "cross_attention_dim": 12, "num_attention_heads": 2, "norm_num_groups": 4}


def inputs(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent, embedding = (torch.randn(shape, generator=generator) for shape in [(2, 4, height, width), (2, 5, 12)])
    return latent, torch.tensor([3, 981]), embedding


def small(architecture: Architecture) -> ElasticUNet:
    torch.manual_seed(0)
    return ElasticUNet(architecture, **SMALL)


@torch.no_grad()
def predict(unet: Any, **arguments: Any) -> Tensor:
    return unet(*inputs(), **arguments).sample


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-6)


SD15_SMALL = Architecture.sd15((8, 8, 16, 16))
