"""The blocks of Stable Diffusion's UNet, ResNets and cross-attentions, and the positions in which they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["resnet", "attention"]


@dataclass(frozen=True)
class Position:
    """A ResNet and the cross-attention behind it: 0 removed, 1 there, n there with n - 1 copies behind it."""

    resnets: int = 1
    attentions: int = 0
    skip: bool = True  # a down position pushes one, an up position pops one; the middle has none

    def __post_init__(self) -> None:
        for name, count in (("resnets", self.resnets), ("attentions", self.attentions)):
            if type(count) is not int or count < 0:
                raise ValueError(f"got {name} = {count!r}, expected a count: 0 removed, 1 there, 2 with one copy, ...")
        if type(self.skip) is not bool:
            raise ValueError(f"got skip = {self.skip!r}, expected true or false")

    def add(self, kind: Kind, count: int) -> Position:
        """The position with `count` more blocks of a kind."""
        if kind == "resnet":
            return replace(self, resnets=self.resnets + count)
        return replace(self, attentions=self.attentions + count)

    def to_dict(self) -> dict[str, int | bool]:
        counts = {"resnets": self.resnets, "attentions": self.attentions}
        return counts if self.skip else {**counts, "skip": False}

    @classmethod
    def from_dict(cls, data: Any) -> Position:
        """What `to_dict` wrote. Raises `ValueError` where it is anything else."""
        if not isinstance(data, Mapping) or not {"resnets", "attentions"} <= set(data) <= {
            "resnets",
            "attentions",
            "skip",
        }:
            raise ValueError(f"got the position {data!r}, expected an object with resnets, attentions and perhaps skip")
        return cls(**data)


@dataclass(frozen=True)
class Slot:
    """A position in its place in the network, with the widths that its original ResNet is made for."""

    stage: str  # "down_blocks.0", "mid_block", "up_blocks.3": what diffusers calls it
    index: int  # of the position in its stage
    level: int  # it runs on a latent whose sides are divided by 2**level
    width_in: int  # channels of the hidden state before it
    skip_width: int  # channels of the skip that is concatenated: 0 but in up positions
    width: int  # channels of the hidden state behind it
    position: Position

    @property
    def resnet(self) -> str:
        """The name of its original ResNet, there or not."""
        return f"{self.stage}.resnets.{self.index}"

    def blocks(self) -> Iterator[Block]:
        """The blocks that are there, in the order in which they run."""
        for copy in range(self.position.resnets):
            yield Block(self.stage, "resnet", self.index, copy, self.level, self.width_in, self.skip_width, self.width)
        for copy in range(self.position.attentions):
            yield Block(self.stage, "attention", self.index, copy, self.level, self.width, 0, self.width)


@dataclass(frozen=True)
class Block:
    """One block that is there: its name, and the widths that its weights are made for (see `Slot`)."""

    stage: str
    kind: Kind
    index: int
    copy: int  # 0: the original; k: its k-th copy
    level: int
    width_in: int
    skip_width: int
    width: int

    @property
    def original(self) -> str:
        """The name of the block that this is a copy of; its own where it is none."""
        return f"{self.stage}.{self.kind}s.{self.index}"

    @property
    def name(self) -> str:
        """What the names of its weights begin with in the state dict."""
        return f"{self.original}.copies.{self.copy - 1}" if self.copy else self.original

    @property
    def removable(self) -> bool:
        """Whether the identity can stand in its place."""
        return self.width_in == self.width
