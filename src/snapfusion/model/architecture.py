"""A UNet as a value: which of its ResNets and cross-attentions are there, and how many copies of each.

SnapFusion (section 3) sees Stable Diffusion's UNet as a row of blocks, each of which may be removed or copied:

removed   A removed block is the identity. So only a block can go whose width is the same before and after it (for an
          up ResNet: before its skip is concatenated).
copied    A copy stands right behind its original, which must be one that could be removed. A copied up ResNet is given
          its original's skip again.
skips     Every down position pushes one skip, whatever leaves it, and every up position pops one, used or not: removing
          a block never changes what the others are given. A down and an up position may give up their skip together.
levels    The deepest levels may be missing, with the samplers that led there; the others keep their names.

A block is called what diffusers calls its weights: "up_blocks.1.attentions.2". Its first copy is
"up_blocks.1.attentions.2.copies.0".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from snapfusion.model.block import Block, Position, Slot

SD_WIDTHS = (320, 640, 1280, 1280)


@dataclass(frozen=True)
class Architecture:
    """The blocks of a UNet.

    `widths` are the channels of every level that the network's ancestor had; `down[i]` are the positions of level i,
    `up[0]` those of the deepest level that is left. An up level has one position more than the down level across.
    Raises `ValueError` where the blocks do not fit together.
    """

    widths: tuple[int, ...]
    down: tuple[tuple[Position, ...], ...]
    mid: tuple[Position, ...]
    up: tuple[tuple[Position, ...], ...]

    def __post_init__(self) -> None:
        widths_are_counts = all(type(width) is int and width > 0 for width in self.widths)
        if not isinstance(self.widths, tuple) or not self.widths or not widths_are_counts:
            raise ValueError(f"got widths {self.widths}, expected a tuple of channels, one per level, as {SD_WIDTHS}")
        if not 1 <= len(self.down) <= len(self.widths) or len(self.up) != len(self.down):
            expected = f"as many of both, 1 to {len(self.widths)}"
            raise ValueError(f"got {len(self.down)} down levels and {len(self.up)} up levels, expected {expected}")
        for down, up in zip(self.down, reversed(self.up), strict=True):
            if not down or len(up) != len(down) + 1:
                raise ValueError(f"got {len(down)} down and {len(up)} up positions across, expected n and n + 1, n > 0")
        if len(self.mid) != 2 or not all(position.skip for position in self.mid):
            raise ValueError(f"got mid {self.mid}, expected two positions; there is no skip to give up")
        self._check_widths()

    def _check_widths(self) -> None:
        """Send nothing but widths through the network."""
        hidden, skips = self.widths[0], [(0, self.widths[0])]  # conv_in and its skip
        for slot in self.slots():
            position = slot.position
            going_down, going_up = slot.stage.startswith("down"), slot.stage.startswith("up")
            if going_up and position.skip:
                skip, expected = skips.pop() if skips else None, (slot.level, slot.skip_width)
                if skip != expected:
                    advice = "let a down and an up position give up their skip together"
                    raise ValueError(f"{slot.resnet}: got skip {skip}, expected (level, width) {expected}; {advice}")
            elif going_up and position.resnets:
                raise ValueError(f"{slot.resnet}: got no skip, expected one; remove the ResNet or keep its skip")
            if position.resnets > 1 and slot.width_in != slot.width:
                raise ValueError(f"{slot.resnet} cannot be copied: it changes {slot.width_in} channels to {slot.width}")
            if position.resnets and hidden != slot.width_in:
                raise ValueError(f"{slot.resnet}: got {hidden} channels, expected {slot.width_in}; remove it")
            if position.resnets:
                hidden = slot.width
            if hidden != slot.width and (going_down or going_up or position.attentions):
                raise ValueError(f"{slot.resnet} cannot be removed: it changes {hidden} channels to {slot.width}")
            if going_down and position.skip:
                skips.append((slot.level, hidden))
            if going_down and slot.index == len(self.down[slot.level]) - 1 and slot.level < len(self.down) - 1:
                skips.append((slot.level + 1, hidden))  # the downsampler's
        if skips:
            raise ValueError(f"got {len(skips)} skips that no up position takes; give up skips in pairs")

    def slots(self) -> Iterator[Slot]:
        """Every position, in the order in which it runs."""
        depth, widths = len(self.down), self.widths
        for level, positions in enumerate(self.down):
            for index, position in enumerate(positions):
                width_in = widths[level] if index else widths[max(level - 1, 0)]
                yield Slot(f"down_blocks.{level}", index, level, width_in, 0, widths[level], position)
        for index, position in enumerate(self.mid):
            yield Slot("mid_block", index, depth - 1, widths[-1], 0, widths[-1], position)
        for level, positions in zip(range(depth - 1, -1, -1), self.up, strict=True):
            for index, position in enumerate(positions):
                width_in = widths[level] if index else widths[min(level + 1, len(widths) - 1)]
                last = index == len(positions) - 1
                skip_width = widths[max(level - 1, 0)] if last else widths[level]
                stage = f"up_blocks.{len(widths) - 1 - level}"
                yield Slot(stage, index, level, width_in, skip_width, widths[level], position)

    def blocks(self) -> tuple[Block, ...]:
        """Every block that is there, in the order in which it runs."""
        return tuple(block for slot in self.slots() for block in slot.blocks())

    def without(self, *names: str) -> Architecture:
        """Remove blocks for good. Behind an original that goes, its first copy takes its place and its name."""
        return self._add(names, -1)

    def with_copies(self, *names: str) -> Architecture:
        """Put one more copy behind each of these blocks."""
        return self._add(names, 1)

    def without_pair(self, down: str, up: str) -> Architecture:
        """Give up the skip between two positions, named by their ResNets; both ResNets go with it."""
        known = {slot.resnet: slot for slot in self.slots()}
        if down not in known or up not in known or not (down.startswith("down") and up.startswith("up")):
            raise ValueError(f"got {down!r} and {up!r}, expected the names of a down and an up ResNet")
        return self._replace({name: replace(known[name].position, resnets=0, skip=False) for name in (down, up)})

    def _add(self, names: Iterable[str], count: int) -> Architecture:
        blocks = {block.name: block for block in self.blocks()}
        changed = {slot.resnet: slot.position for slot in self.slots()}
        for name in dict.fromkeys(names):
            if name not in blocks:
                raise ValueError(
                    f"got {name!r}, expected the name of a block that is there, such as {next(iter(blocks))!r}"
                )
            block = blocks[name]
            key = f"{block.stage}.resnets.{block.index}"
            changed[key] = changed[key].add(block.kind, count)
        return self._replace(changed)

    def _replace(self, changed: Mapping[str, Position]) -> Architecture:
        """This architecture with other positions, by the names of their ResNets."""
        stages: dict[str, tuple[Position, ...]] = {}
        for slot in self.slots():
            stages[slot.stage] = (*stages.get(slot.stage, ()), changed.get(slot.resnet, slot.position))
        mid, rows = stages.pop("mid_block"), tuple(stages.values())
        return replace(self, down=rows[: len(self.down)], mid=mid, up=rows[len(self.down) :])

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it: lists, dicts and numbers."""
        return {
            "widths": list(self.widths),
            "down": [[position.to_dict() for position in level] for level in self.down],
            "mid": [position.to_dict() for position in self.mid],
            "up": [[position.to_dict() for position in level] for level in self.up],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Architecture:
        """What `to_dict` wrote. Raises `ValueError` where it is anything else."""
        if not isinstance(data, Mapping) or set(data) != {"widths", "down", "mid", "up"}:
            raise ValueError(f"got the architecture {data!r}, expected an object with widths, down, mid and up")
        down, up = (tuple(map(_positions, _list(data[side]))) for side in ("down", "up"))
        return cls(tuple(_list(data["widths"])), down, _positions(data["mid"]), up)

    @classmethod
    def sd15(cls, widths: tuple[int, ...] = SD_WIDTHS) -> Architecture:
        """Stable Diffusion v1's and v2's UNet; at other widths every position keeps its name and its meaning."""
        levels = [Position(1, 1)] * (len(widths) - 1) + [Position(1, 0)]
        down, up = tuple((level,) * 2 for level in levels), tuple((level,) * 3 for level in reversed(levels))
        return cls(widths, down, (Position(1, 1), Position(1, 0)), up)

    @classmethod
    def without_top_attention(cls, widths: tuple[int, ...] = SD_WIDTHS) -> Architecture:
        """No attention where the latent is largest and attention dearest, as in Table 3, and nothing else changed."""
        sd15 = cls.sd15(widths)
        return sd15.without(*(block.name for block in sd15.blocks() if block.level == 0 and block.kind == "attention"))

    @classmethod
    def table3(cls, widths: tuple[int, ...] = SD_WIDTHS) -> Architecture:
        """The paper's Table 3. It counts blocks only: which of a stage's ResNets go, and what is copied, is our choice.

        Its "Mid" is down level 4, the middle and up level 0 of diffusers; it gives 7 -> 4 ResNets there.
        """
        return (
            cls.without_top_attention(widths)
            .without_pair("down_blocks.2.resnets.1", "up_blocks.1.resnets.1")
            .without_pair("down_blocks.3.resnets.1", "up_blocks.0.resnets.1")
            .without("mid_block.resnets.1")
            .with_copies(*(f"up_blocks.1.attentions.{index}" for index in range(3)))
        )

    @classmethod
    def bk_base(cls, widths: tuple[int, ...] = SD_WIDTHS) -> Architecture:
        """BK-SDM-Base (arXiv 2305.15798): the second position of every down and up level is gone."""
        sd15 = cls.sd15(widths)
        down = tuple((first, Position(0, 0, skip=False)) for first, _ in sd15.down)
        up = tuple((first, Position(0, 0, skip=False), last) for first, _, last in sd15.up)
        return replace(sd15, down=down, up=up)

    @classmethod
    def bk_small(cls, widths: tuple[int, ...] = SD_WIDTHS) -> Architecture:
        """BK-SDM-Small: BK-SDM-Base without its middle."""
        return replace(cls.bk_base(widths), mid=(Position(0, 0), Position(0, 0)))

    @classmethod
    def bk_tiny(cls, widths: tuple[int, ...] = SD_WIDTHS) -> Architecture:
        """BK-SDM-Tiny: BK-SDM-Small without its deepest level.

        Where that level was the wider one, the first up ResNet that is left has lost its input, and the second stays in
        its place: the shapes are then BK-SDM-Tiny's again.
        """
        small = cls.bk_small(widths)
        (first, gone, last), *rest = small.up[1:]
        deepest = (first, gone, last) if widths[-2] == widths[-1] else (gone, first, last)
        return replace(small, down=small.down[:-1], up=(deepest, *rest))


def _positions(data: Any) -> tuple[Position, ...]:
    return tuple(map(Position.from_dict, _list(data)))


def _list(data: Any) -> Sequence[Any]:
    if not isinstance(data, list | tuple):
        raise ValueError(f"got {data!r} in an architecture, expected a list")
    return data
