"""An autoencoder with another decoder: half as wide, or diffusers' tiny one. Its encoder is the very same."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.stages.distill_decoder.prune import Criterion, halve

TINY_WIDTH = 64  # AutoencoderTiny's, on every level
DECODING = ("decoder.", "post_quant_conv.")


def half(vae: PatchAutoencoderKL, criterion: Criterion, seed: int) -> PatchAutoencoderKL:
    """`vae` with half of the channels of its decoder (see `halve`).

    Raises:
        ValueError: its decoder is none of `AutoencoderKL`'s, or has groups of an odd number of channels.
    """
    config = cast(Any, vae.config)
    if config.decoder_class != "Decoder":
        raise ValueError(f"got a {config.decoder_class} to halve, expected an AutoencoderKL's decoder; see --student")
    decoder = halve(vae.decoder.state_dict(), config.norm_num_groups, criterion, seed)
    with torch.device("meta"):
        student = _with(vae, decoder_block_out_channels=tuple(width // 2 for width in vae.decoder_widths))
    others = {name: weight for name, weight in vae.state_dict().items() if not name.startswith("decoder.")}
    return _fill(student, {**others, **{f"decoder.{name}": weight for name, weight in decoder.items()}})


def tiny(vae: PatchAutoencoderKL, seed: int) -> PatchAutoencoderKL:
    """`vae` with a `TinyDecoder` of AutoencoderTiny's width, untrained: its weights depend on the seed alone."""
    widths = (TINY_WIDTH,) * len(vae.decoder_widths)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = _with(vae, decoder_class="DecoderTiny", decoder_block_out_channels=widths, use_post_quant_conv=False)
    encoder = {name: weight for name, weight in vae.state_dict().items() if not name.startswith(DECODING)}
    return _fill(student, {**student.state_dict(), **encoder})


def _with(vae: PatchAutoencoderKL, **fields: Any) -> PatchAutoencoderKL:
    # Without diffusers' own entries: one of them lists fields to be set to their defaults.
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    return cast(PatchAutoencoderKL, PatchAutoencoderKL.from_config({**config, **fields}))


def _fill(student: PatchAutoencoderKL, weights: Mapping[str, Tensor]) -> PatchAutoencoderKL:
    """Give `student`, which may be on the meta device, copies of weights."""
    student.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)
    return student.eval()
