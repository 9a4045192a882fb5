"""A network of 41 weights, what it learns, and how it is trained."""

import torch
from torch import nn

from snapfusion.fit import WHOLE, FitConfig, Share

CONFIG = FitConfig(
    steps=30, batch=4, lr=0.05, warmup=5, decay=10, ema=0.9, precision="no", log_steps=5, save_seconds=0, tracker=None
)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def loss(net: nn.Module, step: int, share: Share = WHOLE) -> torch.Tensor:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))[share.rows]
    return (net(x) - x.sum(dim=1, keepdim=True)).square().mean()
