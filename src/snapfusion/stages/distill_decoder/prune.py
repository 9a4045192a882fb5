"""Uniform channel pruning of an `AutoencoderKL`'s decoder: half of the channels of every GroupNorm group go.

The groups stay, each with channels of every strength, so that every normalisation still gathers its statistics over the
channels it did, thinned out: the strongest alone would move its mean and variance, which all channels are divided by.
Channels that layers hand on to one another are kept or dropped together: the
residual stream of a level, which many layers add to and read, is one such set, the inside of every ResNet another. The
latent and the image keep theirs. Halved widths leave a quarter of weights and multiplications (paper, section 3.3).
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Criterion = Literal["spread", "magnitude", "random"]

LATENT, IMAGE = "latent", "image"


@dataclass(frozen=True)
class Layer:
    """A convolution or linear map by its name, and the sets of channels at its two ends.

    It reads through `norm` where it has one.
    """

    name: str
    reads: str
    writes: str
    """A set bears the name of the first layer that writes it."""
    norm: str | None = None


def halve(weights: Mapping[str, Tensor], groups: int, criterion: Criterion, seed: int = 0) -> dict[str, Tensor]:
    """The weights of a decoder of half the widths, out of those of a decoder, both under diffusers' names.

    `groups` is the number of every norm's groups. "spread" keeps, in each group, channels of every strength
    (`strengths`) alike; the ablations "magnitude" the strongest, "random" any, drawn from `seed` and the number of the
    set. What is left of a layer's inputs keeps the norm of all of them.

    Raises:
        ValueError: a group has an odd number of channels.
    """
    layers = list(layers_of(weights))
    kept: dict[str, Tensor | None] = {LATENT: None, IMAGE: None}
    for number, channels in enumerate(dict.fromkeys(layer.writes for layer in layers if layer.writes != IMAGE)):
        if criterion == "random":
            width = len(weights[f"{channels}.weight"])
            strength = torch.from_numpy(np.random.default_rng((seed, number)).random(width))
        else:
            strength = strengths(weights, layers, channels)
        normed = any(layer.norm and layer.reads == channels for layer in layers)
        choose = spread_half if criterion == "spread" else better_half
        kept[channels] = choose(strength, groups if normed else 1)
    return {name: weight for layer in layers for name, weight in narrowed(weights, layer, kept).items()}


def better_half(strength: Tensor, groups: int) -> Tensor:
    """The channels, ascending, of the larger half of the strengths `[W]` in each of `groups` runs of equal length."""
    ranked = by_strength(strength, groups)
    return ranked[:, : ranked.shape[1] // 2].sort(dim=1).values.flatten()


def spread_half(strength: Tensor, groups: int) -> Tensor:
    """The channels, ascending, of every strength alike: of each two neighbours by strength one, by turns the stronger
    and the weaker, in each of `groups` runs of equal length."""
    ranked = by_strength(strength, groups)
    pairs = torch.arange(ranked.shape[1] // 2, device=ranked.device)
    return ranked[:, 2 * pairs + pairs % 2].sort(dim=1).values.flatten()


def by_strength(strength: Tensor, groups: int) -> Tensor:
    """The channels of each group `[groups, W / groups]`, the strongest first."""
    width = len(strength)
    if width % (2 * groups):
        raise ValueError(f"got {width} channels in {groups} groups, expected an even number a group; they stay whole")
    firsts = torch.arange(0, width, width // groups, device=strength.device)[:, None]
    return strength.view(groups, -1).argsort(dim=1, descending=True, stable=True) + firsts


def strengths(weights: Mapping[str, Tensor], layers: Collection[Layer], channels: str) -> Tensor:
    """How much each channel of a set, `[W]`, can weigh in what follows, by the weights alone.

    The norm of the filters that write it (how far it moves) times the norm of the weights that read it, each times
    the gain of the norm that it is read through. Queries and keys, which meet each other alone, read one another.
    """
    writers = [weights[f"{layer.name}.weight"].double() for layer in layers if layer.writes == channels]
    readers = []
    for layer in layers:
        if layer.reads == channels:
            gain = 1 if layer.norm is None else weights[f"{layer.norm}.weight"].double()
            readers.append(weights[f"{layer.name}.weight"].double().transpose(0, 1).flatten(1).norm(dim=1) * gain)
    written = [weight.flatten(1).norm(dim=1) for weight in writers]
    if not readers:
        return torch.stack(written).prod(dim=0)
    return torch.stack(written).norm(dim=0) * torch.stack(readers).norm(dim=0)


def narrowed(weights: Mapping[str, Tensor], layer: Layer, kept: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The weights of a layer and of its norm, with the kept channels alone."""

    def rows(tensor: Tensor, channels: str) -> Tensor:
        places = kept[channels]
        return tensor if places is None else tensor[places.to(tensor.device)]

    norm = [] if layer.norm is None else [f"{layer.norm}.{kind}" for kind in ("weight", "bias")]
    found = {name: rows(weights[name], layer.reads) for name in norm}
    weight = weights[f"{layer.name}.weight"]
    read = rows(weight, layer.writes)
    fewer = rows(read.transpose(0, 1), layer.reads).transpose(0, 1)
    # Fewer terms add up to less: what is left of a row of inputs gets the norm that all of it had.
    gain = 1.0 if kept[layer.reads] is None else read.norm() / fewer.norm().clamp_min(1e-30)
    found[f"{layer.name}.weight"] = fewer * gain
    found[f"{layer.name}.bias"] = rows(weights[f"{layer.name}.bias"], layer.writes)
    if layer.name.endswith(".to_q"):
        # Attention divides by the root of the width that queries have, and they have half of it.
        scale = math.sqrt(len(found[f"{layer.name}.weight"]) / len(weight))
        for kind in ("weight", "bias"):
            found[f"{layer.name}.{kind}"] = found[f"{layer.name}.{kind}"] * scale
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in found.items()}


def layers_of(names: Collection[str]) -> Iterator[Layer]:
    """Every layer of the decoder that has these weights, in the order in which a latent passes them."""
    stream = "conv_in"
    yield Layer("conv_in", LATENT, stream)
    for block in blocks_of(names):
        if f"{block}.conv1.weight" in names:
            end = f"{block}.conv_shortcut" if f"{block}.conv_shortcut.weight" in names else stream
            inside = f"{block}.conv1"
            if end != stream:
                yield Layer(end, stream, end)
            yield Layer(inside, stream, inside, f"{block}.norm1")
            yield Layer(f"{block}.conv2", inside, end, f"{block}.norm2")
            stream = end
        elif f"{block}.to_q.weight" in names:
            queries, values, norm = f"{block}.to_q", f"{block}.to_v", f"{block}.group_norm"
            yield Layer(queries, stream, queries, norm)
            yield Layer(f"{block}.to_k", stream, queries, norm)
            yield Layer(values, stream, values, norm)
            yield Layer(f"{block}.to_out.0", values, stream)
        else:
            yield Layer(f"{block}.conv", stream, f"{block}.conv")
            stream = f"{block}.conv"
    yield Layer("conv_out", stream, IMAGE, "conv_norm_out")


def blocks_of(names: Collection[str]) -> list[str]:
    """The ResNets, attentions and upsamplers of a decoder, in the order in which a latent passes them."""
    block = re.compile(r"(?:(mid_block)|up_blocks\.(\d+))\.(resnets|attentions|upsamplers)\.(\d+)")
    order: dict[str, tuple[int, float]] = {}
    for name in names:
        if found := block.match(name):
            _, level, kind, index = found.groups()
            # In the middle an attention stands behind the ResNet of its number; an upsampler closes its level.
            place = {"resnets": int(index), "attentions": int(index) + 0.5, "upsamplers": math.inf}[kind]
            order[found[0]] = (-1 if level is None else int(level), place)
    return sorted(order, key=lambda name: order[name])
