"""A UNet of larger widths that computes what a trained one does, to be trained on from there (arXiv 1511.05641).

Each channel of a width that grows is there several times, and whoever reads it takes a share of each copy, so that
sums stay. The copies stand side by side, in one group of every norm that reads their width alone, so that its
statistics stay too; an attention copies whole heads. Only norms over two widths of which one grows see other groups.
Copies would learn the same for ever, so noise tells them apart: what one copy gains its twin loses, and the
network's function moves by second-order terms only. A width that shrinks keeps evenly spaced channels, which preserves
nothing: it is for levels that a trained network was found not to use.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from snapfusion.model.narrow import Channels, Ends, Layer, layers_of
from snapfusion.model.unet import ElasticUNet


@dataclass(frozen=True)
class Copies:
    """Where each channel of an axis comes from, all `[size]`."""

    source: Tensor  # the channel of the smaller network
    share: Tensor  # of that channel's weight, for whoever reads it
    sign: Tensor  # +1 and -1 on twins, 0 on channels that have none

    @classmethod
    def joined(cls, parts: list["Copies"], sizes: list[int]) -> "Copies":
        """Side by side on an axis, where the parts of the smaller network have these sizes."""
        firsts = [sum(sizes[:number]) for number in range(len(sizes))]
        sources = [part.source + first for part, first in zip(parts, firsts, strict=True)]
        return cls(
            torch.cat(sources), torch.cat([part.share for part in parts]), torch.cat([part.sign for part in parts])
        )


def widen(unet: ElasticUNet, widths: tuple[int, ...], noise: float = 0.2, seed: int = 0) -> ElasticUNet:
    """The UNet at other widths and heads as wide as they were, each width a whole multiple or a whole part of its own.

    Args:
        noise: by how much twins differ, in standard deviations of the weight tensor that they stand in.
        seed: of the noise.

    Raises `ValueError` where a width is neither, or where it does not divide into heads or into groups.
    """
    own = unet.architecture.widths
    if len(widths) != len(own) or any(
        new < 1 or (new % old and old % new) for old, new in zip(own, widths, strict=True)
    ):
        raise ValueError(f"got widths {widths} for a UNet of {own}, expected whole multiples or whole parts of those")
    head_widths = [width // heads for width, heads in zip(own, unet.heads, strict=True)]
    groups = unet.config["norm_num_groups"]
    if any(new % head or new % groups for new, head in zip(widths, head_widths, strict=True)):
        raise ValueError(f"got widths {widths}, expected multiples of heads {head_widths} wide and of {groups} groups")
    wider = {
        "architecture": replace(unet.architecture, widths=widths).to_dict(),
        "num_attention_heads": [new // head for new, head in zip(widths, head_widths, strict=True)],
    }
    with torch.device("meta"):
        widened = cast(ElasticUNet, ElasticUNet.from_config({**cast(Any, unet.config), **wider}))
    if widened.state_dict().keys() != unet.state_dict().keys():  # a ResNet between equal widths has no shortcut
        raise ValueError(
            f"got widths {widths} for a UNet of {own}, expected neighbours that differ in width where they did"
        )
    generator = torch.Generator().manual_seed(seed)
    weights = dict(_weights(unet.state_dict(), layers_of(unet), layers_of(widened), noise, generator))
    widened.load_state_dict(weights, assign=True)
    return widened.train(unet.training)


def _weights(
    weights: Mapping[str, Tensor],
    olds: Iterator[Layer],
    news: Iterator[Layer],
    noise: float,
    generator: torch.Generator,
) -> Iterator[tuple[str, Tensor]]:
    """The weights of the wider network by name, layer by layer."""
    for old, new in zip(olds, news, strict=True):
        assert old.name == new.name, (old.name, new.name)
        writes, weight = copies_of(old.writes, new.writes), weights[f"{old.name}.weight"]
        found = weight[writes.source]
        if old.reads:
            reads = copies_of(old.reads, new.reads)
            rest = (1,) * (weight.dim() - 2)
            found = found[:, reads.source] * reads.share.view(1, -1, *rest)
            for sign in (writes.sign.view(-1, 1, *rest), reads.sign.view(1, -1, *rest)):
                draw = noise * weight.std() * torch.randn(weight.shape, generator=generator)
                found = found + sign * draw[writes.source][:, reads.source] * reads.share.view(1, -1, *rest)
        yield f"{old.name}.weight", found.contiguous()
        if (bias := weights.get(f"{old.name}.bias")) is not None:
            yield f"{old.name}.bias", bias[writes.source]


def copies_of(olds: Ends, news: Ends) -> Copies:
    """Where the channels of an axis come from."""
    parts = [_copies(old, new) for old, new in zip(olds, news, strict=True)]
    return Copies.joined(parts, [old.size for old in olds])


def _copies(old: Channels, new: Channels) -> Copies:
    times = max(new.size // old.size, 1)
    if new.kept == "spaced":  # every frequency is there once, at its place among more or fewer
        place = torch.arange(new.size // new.runs)
        run = torch.arange(new.runs).view(-1, 1) * (old.size // old.runs)
        source = (run + place * old.size // new.size).flatten()
        share = (place % times == 0).float().repeat(new.runs)
        return Copies(source, share, torch.zeros(new.size))
    run = new.size // new.runs if new.size // new.runs == old.size // old.runs else 1  # whole heads, else channels
    place = torch.arange(new.size)
    source = (place // run * old.size // new.size) * run + place % run
    sign = torch.zeros(new.size)
    if times > 1:
        twin = place // run % times
        sign = torch.where(twin < times // 2 * 2, 1.0 - 2.0 * (twin % 2), 0.0)
    return Copies(source, torch.full((new.size,), 1 / times), sign)
