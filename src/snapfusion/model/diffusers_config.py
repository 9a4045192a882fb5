"""What a Stable Diffusion checkpoint says about its UNet: diffusers' config.json read as ours."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from snapfusion.model.architecture import Architecture
from snapfusion.model.block import Position

PASSED_ON = (
    "sample_size",
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "norm_num_groups",
    "use_linear_projection",
    "upcast_attention",
    "time_cond_proj_dim",
)
READ_HERE = (
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "attention_head_dim",
    "num_attention_heads",
)
POSITIONS = {
    "DownBlock2D": Position(1, 0),
    "CrossAttnDownBlock2D": Position(1, 1),
    "UpBlock2D": Position(1, 0),
    "CrossAttnUpBlock2D": Position(1, 1),
}
MIDS = {"UNetMidBlock2DCrossAttn": (Position(1, 1), Position(1, 0)), None: (Position(0, 0), Position(0, 0))}


def elastic_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ElasticUNet` for the config of a `UNet2DConditionModel`.

    Raises `ValueError` for anything that Stable Diffusion v1 and v2 do not have, such as SDXL's added conditions: it
    must stand in the config as diffusers' default or not at all.
    """
    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.name != "self"}
    config = {**defaults, **config}
    for name, default in defaults.items():
        if name not in PASSED_ON and name not in READ_HERE and config[name] != default:
            raise ValueError(f"got {name} = {config[name]!r}, expected {default!r} as in Stable Diffusion v1 and v2")
    if not isinstance(config["cross_attention_dim"], int):
        raise ValueError(f"got cross_attention_dim = {config['cross_attention_dim']!r}, expected one number")
    # attention_head_dim is the number of heads: diffusers keeps a name that was wrong from the start.
    heads = config["num_attention_heads"] or config["attention_head_dim"]
    passed_on = {name: config[name] for name in PASSED_ON}
    return {"architecture": _architecture(config).to_dict(), "num_attention_heads": heads, **passed_on}


def _architecture(config: Mapping[str, Any]) -> Architecture:
    widths = tuple(config["block_out_channels"])
    layers = config["layers_per_block"]
    layers = (layers,) * len(widths) if isinstance(layers, int) else tuple(layers)
    if config["mid_block_type"] not in MIDS:
        raise ValueError(f"got mid_block_type {config['mid_block_type']!r}, expected one of {[*MIDS]}")
    for name in (*config["down_block_types"], *config["up_block_types"]):
        if name not in POSITIONS:
            raise ValueError(f"got the block type {name!r}, expected one of {[*POSITIONS]}")
    down = tuple((POSITIONS[name],) * n for name, n in zip(config["down_block_types"], layers, strict=True))
    up = tuple((POSITIONS[name],) * (n + 1) for name, n in zip(config["up_block_types"], reversed(layers), strict=True))
    return Architecture(widths, down, MIDS[config["mid_block_type"]], up)
