"""The pieces of a UNet (`table.pieces`) as networks of their own, each called with what it meets inside."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from snapfusion.model.architecture import Architecture
from snapfusion.model.block import Block
from snapfusion.model.unet import ElasticUNet
from snapfusion.stages.profile.sketch import Sketch, blank
from snapfusion.table import REST, pieces


@dataclass(frozen=True)
class Piece:
    """One piece, weightless."""

    name: str
    level: int
    shape: tuple[object, ...]
    """Pieces of one shape are the same network on inputs of the same size, and need to be timed once."""
    sketch: Sketch
    removable: bool = False

    def row(self, count: int) -> Sketch:
        """A removable piece `count` times, one behind the other, as copies stand behind their original."""
        assert self.removable
        first = cast("Resnets | Attentions", self.sketch.module)
        return Sketch(type(first)([first.blocks[0]] * count), self.sketch.example)


class Resnets(nn.Module):
    """ResNets in a row: `hidden` `[B, C, h, w]` and, in up levels, `skip` `[B, S, h, w]`, given to each of them."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(copy.deepcopy(block) for block in blocks)

    def forward(self, hidden: Tensor, time: Tensor, skip: Tensor | None = None) -> Tensor:
        for resnet in self.blocks:
            hidden = resnet(hidden if skip is None else torch.cat([hidden, skip], dim=1), time)
        return hidden


class Attentions(nn.Module):
    """Cross-attention blocks in a row: `hidden` `[B, C, h, w]` and the prompts' `embedding` `[B, L, D]`."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(copy.deepcopy(block) for block in blocks)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        for attention in self.blocks:
            hidden = attention(hidden, encoder_hidden_states=embedding, return_dict=False)[0]
        return hidden


class Upsample(nn.Module):
    """`hidden` `[B, C, h, w]` to twice its sides, or to the side that an uneven latent had on the way down."""

    def __init__(self, upsampler: nn.Module, side: int | None) -> None:
        super().__init__()
        self.upsampler, self.side = upsampler, side

    def forward(self, hidden: Tensor) -> Tensor:
        return self.upsampler(hidden, None if self.side is None else (self.side, self.side))


def pieces_of(unet: ElasticUNet, length: int) -> list[Piece]:
    """Every piece that the price of an architecture made of this UNet's blocks may need.

    Args:
        unet: Weightless, without copies.
        length: Tokens of a prompt.
    """
    blocks = {(block.original, block.level): block for block in _blocks(unet.architecture)}
    found = []
    for name, level in dict.fromkeys([*pieces(unet.architecture), *blocks]):
        if name != REST:
            block = blocks.get((name, level))
            found.append(_block(unet, block, length) if block else _between(unet, name, level))
    return found


def _blocks(architecture: Architecture) -> Iterator[Block]:
    """The blocks, and those of the middle again wherever it can stand when the levels below it are gone."""
    for block in architecture.blocks():
        yield block
        if block.stage == "mid_block":
            for level in range(block.level):
                if architecture.widths[level] == block.width:
                    yield replace(block, level=level)


def _block(unet: ElasticUNet, block: Block, length: int) -> Piece:
    side, module = _side(unet, block.level), unet.get_submodule(block.original)
    hidden = blank(block.width_in, side, side)
    if block.kind == "attention":
        heads = cast(Any, module).num_attention_heads
        shape = ("attention", block.level, block.width, heads)
        embedding = blank(length, unet.config["cross_attention_dim"])
        sketch = Sketch(Attentions([module]), {"hidden": hidden, "embedding": embedding})
    else:
        shape = ("resnet", block.level, block.width_in, block.skip_width, block.width)
        example = {"hidden": hidden, "time": blank(4 * unet.architecture.widths[0])}
        if block.skip_width:
            example["skip"] = blank(block.skip_width, side, side)
        sketch = Sketch(Resnets([module]), example)
    return Piece(block.original, block.level, shape, sketch, block.removable)


def _between(unet: ElasticUNet, name: str, level: int) -> Piece:
    """What is no block."""
    width, side = unet.architecture.widths[level], _side(unet, level)
    hidden = blank(width, side, side)
    if name == "conv_in":
        sketch = Sketch(nn.Sequential(unet.conv_in), {"input": blank(unet.config["in_channels"], side, side)})
    elif name == "time_embedding":
        step = torch.empty(1, device="meta")
        sketch = Sketch(nn.Sequential(unet.time_proj, unet.time_embedding), {"input": step})
    elif name == "conv_out":
        sketch = Sketch(nn.Sequential(unet.conv_norm_out, unet.conv_act, unet.conv_out), {"input": hidden})
    elif name.startswith("up_blocks"):
        uneven = unet.config["sample_size"] % 2 ** (len(unet.architecture.down) - 1) != 0
        above = _side(unet, level - 1) if uneven else None
        sketch = Sketch(Upsample(unet.get_submodule(name), above), {"hidden": hidden})
    else:
        sketch = Sketch(nn.Sequential(unet.get_submodule(name)), {"input": hidden})
    return Piece(name, level, (name,), sketch)


def _side(unet: ElasticUNet, level: int) -> int:
    """Of the latent at a level: each downsampler rounds up."""
    return -(-unet.config["sample_size"] // 2**level)
