"""A network without weights and inputs without values: enough to count it, and to time it with random ones.

How long a dense network takes does not depend on its weights. So nothing here holds more than one network in memory,
and Stable Diffusion can be timed by who does not have it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from snapfusion.model.operations import operations_of

ROWS = 2  # of an example: so that no batch of one is taken for a fixed size
STD = 0.02  # of random weights: small enough that no activation overflows


@dataclass(frozen=True)
class Sketch:
    """A module and what it is called with, both on torch's meta device."""

    module: nn.Module
    example: Mapping[str, Tensor]
    """By the names of its arguments; `ROWS` rows, but for tensors of one axis, which have no batch."""

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    def macs(self) -> int:
        """Multiply-accumulates for one row: convolutions, linear layers and the two products of attention."""
        # Fake tensors say of themselves that they have no values, which keeps transformers from looking at a mask's.
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            row = {name: fake.from_tensor(value[:1]) for name, value in self.example.items()}
            return operations_of(lambda: self.module(**row)) // 2

    def filled(self) -> nn.Module:
        """A copy with random weights, in evaluation mode; buffers, which hold indices, are zero."""
        module = copy.deepcopy(self.module).to_empty(device="cpu").eval().requires_grad_(False)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=STD)
        for buffer in module.buffers():
            buffer.zero_()
        return module

    def inputs(self, rows: int) -> dict[str, Tensor]:
        """Random inputs of `rows` rows; whole numbers count up from 1: as tokens they are known and no padding."""
        return {name: _random(value, rows) for name, value in self.example.items()}


def blank(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`ROWS` rows of an input that has no values."""
    return torch.empty(ROWS, *shape, dtype=dtype, device="meta")


def _random(value: Tensor, rows: int) -> Tensor:
    shape = (rows, *value.shape[1:]) if value.ndim > 1 else tuple(value.shape)
    if value.dtype.is_floating_point:
        return torch.randn(shape, dtype=value.dtype)
    return torch.arange(1, shape[-1] + 1, dtype=value.dtype).expand(shape).contiguous()
