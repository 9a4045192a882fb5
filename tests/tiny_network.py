"""A network small enough to convert in a second, wide enough that int8 counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """A convolution and a matrix; `shift` has one value for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 64, 3, padding=1)
        self.linear = nn.Linear(64, 64)

    def forward(self, sample: Tensor, shift: Tensor) -> Tensor:
        return self.linear(self.conv(sample).relu().mean((2, 3))) + shift

    @classmethod
    def random(cls) -> Tiny:
        """The same weights every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls().eval()


EXAMPLE = {"sample": torch.zeros(2, 4, 8, 8), "shift": torch.tensor([1])}


def inputs(rows: int) -> dict[str, Any]:
    """Other values for every number of rows."""
    sample = np.random.default_rng(rows).standard_normal((rows, 4, 8, 8), np.float32)
    return {"sample": sample, "shift": np.array([3])}
