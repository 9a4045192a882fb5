"""A UNet of smaller widths, sliced out of a trained one: some of every norm's groups stay, the same share everywhere.

Uniform pruning is the obvious rival of evolution. Channels that layers hand on to one another are kept or dropped
together: the residual stream of one width is one such set, the inside of each ResNet another. With k of each norm's G
groups left, every width is k / G of what it was, and every norm that reads one set alone still gathers its statistics
over the very channels it did.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from snapfusion.model.block import Block
from snapfusion.model.unet import ElasticUNet


@dataclass(frozen=True)
class Channels:
    """A set of channels that is kept or dropped as one, by the name of who began it."""

    name: str
    size: int
    kept: Literal["all", "groups", "each", "spaced"] = "each"
    """Whole runs of it (the groups of a norm); as many in each run (the heads of an attention); or, of the timestep's
    cosines and sines, evenly spaced frequencies."""
    runs: int = 1


Ends = tuple[Channels, ...]  # side by side on an axis: two where a skip is concatenated


@dataclass(frozen=True)
class Layer:
    """A norm, a convolution or a linear map, and the channels at its two ends; a norm has one."""

    name: str
    writes: Ends
    reads: Ends = ()


def narrow(unet: ElasticUNet, share: float) -> ElasticUNet:
    """The UNet of about `share` of the widths, with a copy of the strongest channels' weights.

    Raises `ValueError` where `share` is not between 0 and 1, or the widths can be narrowed by no number of groups.
    """
    groups, kept = unet.config["norm_num_groups"], groups_left(unet, share)
    widths = tuple(width * kept // groups for width in unet.architecture.widths)
    smaller = {"architecture": replace(unet.architecture, widths=widths).to_dict(), "norm_num_groups": kept}
    with torch.device("meta"):
        narrowed = cast(ElasticUNet, ElasticUNet.from_config({**cast(Any, unet.config), **smaller}))
    narrowed.load_state_dict(sliced(unet.state_dict(), list(layers_of(unet)), kept / groups), assign=True)
    return narrowed.train(unet.training)


def groups_left(unet: ElasticUNet, share: float) -> int:
    """How many of a norm's groups come nearest to `share` where every head can lose as large a part."""
    groups, widths = unet.config["norm_num_groups"], unet.architecture.widths
    runs = {widths[0] // 2, *(width // heads for width, heads in zip(widths, unet.heads, strict=True))}
    possible = [k for k in range(1, groups) if all(run * k % groups == 0 for run in runs)]
    if not 0 < share < 1 or not possible:
        raise ValueError(
            f"got a share of {share:g} of {groups} groups, with heads of {sorted(runs)} channels, expected one between "
            "0 and 1, and heads that lose a whole number of channels with some number of groups"
        )
    return min(possible, key=lambda k: abs(k / groups - share))


def sliced(weights: Mapping[str, Tensor], layers: Collection[Layer], share: float) -> dict[str, Tensor]:
    """The weights with `share` of each set's channels, the strongest by `strength`."""
    ends = dict.fromkeys(channels for layer in layers for channels in (*layer.writes, *layer.reads))
    places = {channels: kept_places(channels, strength(weights, layers, channels), share) for channels in ends}

    def at(ends: Ends) -> Tensor:
        firsts = [sum(channels.size for channels in ends[:number]) for number in range(len(ends))]
        return torch.cat([places[channels] + first for channels, first in zip(ends, firsts, strict=True)])

    found: dict[str, Tensor] = {}
    for layer in layers:
        weight = weights[f"{layer.name}.weight"][at(layer.writes)]
        # Attention divides by the root of a head's width, which is smaller now.
        scale = math.sqrt(share) if layer.name.endswith(".to_q") else 1.0
        found[f"{layer.name}.weight"] = scale * (weight[:, at(layer.reads)] if layer.reads else weight)
        if (bias := weights.get(f"{layer.name}.bias")) is not None:
            found[f"{layer.name}.bias"] = scale * bias[at(layer.writes)]
    assert found.keys() == weights.keys(), sorted(found.keys() ^ weights.keys())
    return found


def kept_places(channels: Channels, strength: Tensor, share: float) -> Tensor:
    """Which channels of a set stay, ascending, by the strength of each, `[size]`."""
    if channels.kept == "all":
        return torch.arange(channels.size)
    runs = strength.view(channels.runs, -1)
    firsts = torch.arange(0, channels.size, runs.shape[1])[:, None]
    if channels.kept == "groups":
        best = runs.norm(dim=1).topk(round(channels.runs * share)).indices.sort().values
        return (firsts[best] + torch.arange(runs.shape[1])).flatten()
    count = round(runs.shape[1] * share)
    if channels.kept == "spaced":
        spaced = (torch.arange(count) * runs.shape[1] / count).round().long()
        return (firsts + spaced).flatten()
    return (firsts + runs.topk(count).indices.sort().values).flatten()


def strength(weights: Mapping[str, Tensor], layers: Collection[Layer], channels: Channels) -> Tensor:
    """How much each channel of a set can weigh, `[size]`: the norm of what writes it times that of what reads it."""
    written, read = torch.zeros(channels.size).double(), torch.zeros(channels.size).double()
    for layer in layers:
        if not layer.reads:  # a norm
            continue
        for total, ends, axis in ((written, layer.writes, 0), (read, layer.reads, 1)):
            weight = weights[f"{layer.name}.weight"].double().transpose(0, axis).flatten(1)
            for part, end in zip(weight.split([end.size for end in ends]), ends, strict=True):
                if end == channels:
                    total += part.square().sum(dim=1)
    return written.sqrt() * read.sqrt()


def layers_of(unet: ElasticUNet) -> Iterator[Layer]:
    """Every layer of the UNet that has weights."""
    names, widths, groups = unet.state_dict().keys(), unet.architecture.widths, unet.config["norm_num_groups"]

    def stream(width: int) -> Channels:
        return Channels(f"stream of {width}", width, "groups", groups)

    top, hidden, time = stream(widths[0]), Channels("time_embedding", 4 * widths[0]), Channels("time", 4 * widths[0])
    sinusoids = Channels("time_proj", widths[0], "spaced", 2)
    yield Layer("conv_in", (top,), (Channels("latent", unet.config["in_channels"], "all"),))
    yield Layer("time_embedding.linear_1", (hidden,), (sinusoids,))
    yield Layer("time_embedding.linear_2", (time,), (hidden,))
    if condition := unet.config["time_cond_proj_dim"]:
        yield Layer("time_embedding.cond_proj", (sinusoids,), (Channels("condition", condition, "all"),))
    for block in unet.architecture.blocks():
        if block.kind == "resnet":
            entries = (stream(block.width_in), *((stream(block.skip_width),) if block.skip_width else ()))
            inside = Channels(block.name, block.width, "groups", groups)
            yield from _resnet(block.name, names, (entries, inside, stream(block.width)), time)
        else:
            heads = unet.heads[-1 if block.stage == "mid_block" else block.level]
            context = Channels("embedding", unet.config["cross_attention_dim"], "all")
            yield from _attention(block, stream(block.width), context, heads)
    for slot in {slot.stage: slot for slot in unet.architecture.slots()}.values():
        for sampler in (f"{slot.stage}.downsamplers.0", f"{slot.stage}.upsamplers.0"):
            for conv in (f"{sampler}.conv", f"{sampler}.op"):
                if f"{conv}.weight" in names:
                    yield Layer(conv, (stream(slot.width),), (stream(slot.width),))
    yield Layer("conv_norm_out", (top,))
    yield Layer("conv_out", (Channels("prediction", unet.config["out_channels"], "all"),), (top,))


def _resnet(
    name: str, names: Collection[str], path: tuple[Ends, Channels, Channels], time: Channels
) -> Iterator[Layer]:
    entries, inside, end = path
    yield Layer(f"{name}.norm1", entries)
    yield Layer(f"{name}.conv1", (inside,), entries)
    yield Layer(f"{name}.time_emb_proj", (inside,), (time,))
    yield Layer(f"{name}.norm2", (inside,))
    yield Layer(f"{name}.conv2", (end,), (inside,))
    if f"{name}.conv_shortcut.weight" in names:
        yield Layer(f"{name}.conv_shortcut", (end,), entries)


def _attention(block: Block, stream: Channels, context: Channels, heads: int) -> Iterator[Layer]:
    name, width = block.name, block.width
    inner = Channels(name, width)
    yield Layer(f"{name}.norm", (stream,))
    yield Layer(f"{name}.proj_in", (inner,), (stream,))
    yield Layer(f"{name}.proj_out", (stream,), (inner,))
    deep = f"{name}.transformer_blocks.0"
    for number in (1, 2, 3):
        yield Layer(f"{deep}.norm{number}", (inner,))
    for attention, source in ((f"{deep}.attn1", inner), (f"{deep}.attn2", context)):
        queries, values = (Channels(f"{attention}.{end}", width, "each", heads) for end in ("to_q", "to_v"))
        yield Layer(f"{attention}.to_q", (queries,), (inner,))
        yield Layer(f"{attention}.to_k", (queries,), (source,))
        yield Layer(f"{attention}.to_v", (values,), (source,))
        yield Layer(f"{attention}.to_out.0", (inner,), (values,))
    wide = Channels(f"{deep}.ff", 4 * width)
    yield Layer(f"{deep}.ff.net.0.proj", (wide, wide), (inner,))  # the values and their gates
    yield Layer(f"{deep}.ff.net.2", (inner,), (wide,))
