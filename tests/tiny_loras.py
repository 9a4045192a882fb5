"""A LoRA as the files of each layout write it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA, SCALE = 2, 3.0, 0.5
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
UNET = (
    f"{BLOCK}.attn1.to_q",
    f"{BLOCK}.attn2.to_out.0",
    f"{BLOCK}.ff.net.0.proj",
    "mid_block.attentions.0.proj_in",  # a convolution of one point
    "down_blocks.1.resnets.0.conv1",
    "up_blocks.0.upsamplers.0.conv",
    "time_embedding.linear_1",
)
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj", "encoder.layers.1.mlp.fc1")
ORIGINAL = {  # kohya's names where its scripts were given the original code's UNet
    f"{BLOCK}.attn1.to_q": "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    f"{BLOCK}.attn2.to_out.0": "input_blocks_1_1_transformer_blocks_0_attn2_to_out_0",
    f"{BLOCK}.ff.net.0.proj": "input_blocks_1_1_transformer_blocks_0_ff_net_0_proj",
    "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
    "down_blocks.1.resnets.0.conv1": "input_blocks_4_0_in_layers_2",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_1_conv",
    "time_embedding.linear_1": "time_embed_0",
}
Change = tuple[Tensor, Tensor]  # down, up


def kohya(changes: dict[str, Change], names: dict[str, str] | None = None) -> dict[str, Tensor]:
    weights = {}
    for name, (down, up) in changes.items():
        underscored = (names or {}).get(name, name.replace(".", "_"))
        key = f"lora_te_text_model_{underscored}" if name in TEXT else f"lora_unet_{underscored}"
        weights |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}
    return weights


def diffusers(changes: dict[str, Change]) -> dict[str, Tensor]:
    weights = {}
    for name, (down, up) in changes.items():
        key = f"text_encoder.text_model.{name}" if name in TEXT else f"unet.{name}"
        weights |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    return weights


def new_diffusers(changes: dict[str, Change]) -> dict[str, Tensor]:
    """With transformers 5, which drops a prefix of CLIP's."""
    return {key.replace(".text_model.", "."): weight for key, weight in diffusers(changes).items()}


def old_diffusers(changes: dict[str, Change]) -> dict[str, Tensor]:
    """Of before PEFT: attentions by their processor, other layers by a child of their own, alphas beside them."""
    weights = {}
    for name, (down, up) in changes.items():
        key = f"text_encoder.text_model.{name}" if name in TEXT else f"unet.{name}"
        for new, old in ((".to_out.0", ".to_out"), (".q_proj", ".to_q"), (".out_proj", ".to_out")):
            key = key.removesuffix(new) + old if key.endswith(new) else key
        for attention in ("attn1", "attn2"):
            key = key.replace(f".{attention}.", f".{attention}.processor.")
        inner = "_lora" if ".to_" in key else ".lora_linear_layer" if name in TEXT else ".lora"
        weights |= {f"{key}{inner}.down.weight": down, f"{key}{inner}.up.weight": up}
        weights[f"{key}.alpha"] = torch.tensor(ALPHA)
    return weights


def peft(changes: dict[str, Change]) -> dict[str, Tensor]:
    """What PEFT saves of a UNet alone; its adapter_config.json says alpha."""
    weights = {}
    for name, (down, up) in changes.items():
        if name not in TEXT:
            key = f"base_model.model.{name}"
            weights |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.default.weight": up}
    return weights


SETTINGS = {f"{part}.lora_alpha": ALPHA for part in ("unet", "text_encoder")}
LAYOUTS: dict[str, tuple[Callable[[dict[str, Change]], dict[str, Tensor]], dict[str, Any]]] = {
    "kohya": (kohya, {}),
    "kohya, original names": (lambda changes: kohya(changes, ORIGINAL), {}),
    "diffusers": (diffusers, SETTINGS),
    "diffusers with transformers 5": (new_diffusers, SETTINGS),
    "old diffusers": (old_diffusers, {}),
    "PEFT": (peft, SETTINGS),
}


def write(file: Path, weights: dict[str, Tensor], settings: dict[str, Any] | None = None) -> Path:
    save_file(weights, file, {"lora_adapter_metadata": json.dumps(settings)} if settings else None)
    return file
