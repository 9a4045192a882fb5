"""LoRA files merged into a checkpoint: W + scale * alpha / r * up @ down (Hu et al., arXiv 2106.09685).

Read: what diffusers and PEFT write, older forms included, and what kohya's scripts write; for the UNet and the text
encoder, linear and convolutional. A copy of a block is no part of what a LoRA was made for: originals alone change.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from snapfusion.checkpoint import CLIP_PREFIX, Checkpoint
from snapfusion.json_file import read_json
from snapfusion.model.architecture import Architecture
from snapfusion.model.configs import is_stable_diffusions
from snapfusion.model.original_names import UNET, unet_names
from snapfusion.model.unet import ElasticUNet
from snapfusion.weights import PICKLES, open_tensors

UNKNOWN = "expected LoRA weights of diffusers, PEFT or kohya for this checkpoint's UNet and text encoder"
ROLE = re.compile(
    r"(?P<target>.+?)(?:"
    r"\.lora_(?P<kohya>down|up)\.weight"
    r"|\.lora_(?P<peft>A|B)(?:\.\w+)?\.weight"
    r"|[._]lora(?:_linear_layer)?\.(?P<old>down|up)\.weight"
    r"|\.(?P<alpha>alpha))"
)
ROLES = {"down": "down", "up": "up", "A": "down", "B": "up", "alpha": "alpha"}
# How diffusers called the projections of its and transformers' attentions before PEFT.
OLD_NAMES = (
    (r"\.processor\.", "."),
    (r"(\.attn\d\.to_out)$", r"\1.0"),
    (r"\.self_attn\.to_([qkv])$", r".self_attn.\1_proj"),
    (r"\.self_attn\.to_out$", ".self_attn.out_proj"),
)
DIFFUSERS_METADATA = "lora_adapter_metadata"
PARTS = ("unet", "text_encoder")
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Lora:
    """A file, and how much of it is wanted."""

    file: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """`FILE` or `FILE:SCALE`."""
        name, colon, scale = text.rpartition(":")
        try:
            return cls(Path(name), float(scale)) if colon and name else cls(Path(text))
        except ValueError:
            return cls(Path(text))  # a colon in the file's name


@dataclass(frozen=True)
class Merged:
    """What became of a LoRA."""

    lora: Lora
    layers: int
    """That it changed."""
    removed: int
    """That it would have changed, had their blocks not been removed."""

    def describe(self) -> str:
        """On a line."""
        left_out = f"; {self.removed} of removed blocks left out" if self.removed else ""
        return f"{self.lora.file}: merged into {self.layers} layers at scale {self.lora.scale:g}{left_out}"


def parsed(texts: Sequence[str]) -> list[Lora]:
    """What the command line says of LoRAs."""
    return [Lora.parse(text) for text in texts]


@torch.no_grad()
def merge(checkpoint: Checkpoint, lora: Lora) -> Merged:
    """Add a LoRA to the weights of `checkpoint`.

    Raises `ValueError` for a file that is no safetensors, and for weights that are unknown, incomplete or of another
    shape than those that they are to be added to; the checkpoint is then not to be used.
    """
    if not math.isfinite(lora.scale):
        raise ValueError(f"{lora.file}: got scale {lora.scale}, expected a finite number")
    weights, settings = _read(lora.file)
    layers = _layers(checkpoint)
    names = _names(checkpoint, layers)
    changes: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in weights.items():
        match = ROLE.fullmatch(key)
        name = match and _name(match["target"], names)
        if not match or name is None:
            raise ValueError(f"{lora.file}: {key}: got a weight for nothing that is known here, {UNKNOWN}")
        changes[name][ROLES[match["kohya"] or match["peft"] or match["old"] or match["alpha"]]] = tensor
    for name, change in changes.items():
        if not {"down", "up"} <= change.keys():
            raise ValueError(f"{lora.file}: {name}: got only {', '.join(change)}, expected both down and up")
        if name in layers:
            weight = layers[name].weight
            weight.add_(lora.scale * _strength(name, change, settings) * _product(lora.file, name, change, weight))
    merged = sum(name in layers for name in changes)
    return Merged(lora, merged, len(changes) - merged)


def _read(file: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """A file's tensors as float32, and what it or PEFT says of them."""
    if file.suffix in PICKLES:
        raise ValueError(f"{file}: got a pickle, expected .safetensors: a pickle can run code when it is opened")
    if not file.is_file():
        raise ValueError(f"{file}: missing, expected a LoRA's .safetensors; say it as FILE or FILE:SCALE")
    with open_tensors(file) as opened:
        metadata = opened.metadata() or {}
        weights = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    if not weights:
        raise ValueError(f"{file}: got no weights, {UNKNOWN}")
    if DIFFUSERS_METADATA in metadata:
        try:
            return weights, json.loads(metadata[DIFFUSERS_METADATA])
        except ValueError as error:
            raise ValueError(f"{file}: {DIFFUSERS_METADATA} in its metadata: expected JSON ({error})") from error
    beside = file.parent / PEFT_CONFIG
    if file.name == PEFT_FILE and beside.is_file():
        return weights, {f"{part}.{name}": value for part in PARTS for name, value in read_json(beside).items()}
    return weights, {}


def _layers(checkpoint: Checkpoint) -> dict[str, Layer]:
    """Everything that a LoRA can change: `unet.NAME` and `text_encoder.text_model.NAME`, as diffusers calls them."""
    text = {
        f"text_encoder.{CLIP_PREFIX}{name.removeprefix(CLIP_PREFIX)}": layer
        for name, layer in _layers_of(checkpoint.text_encoder.model).items()
    }
    return {f"unet.{name}": layer for name, layer in _layers_of(checkpoint.unet).items()} | text


def _layers_of(network: nn.Module) -> dict[str, Layer]:
    return {name: module for name, module in network.named_modules() if isinstance(module, Layer)}


def _names(checkpoint: Checkpoint, layers: Mapping[str, Layer]) -> dict[str, str]:
    """Every name that a file may have for a layer, those of removed blocks too; values as keys of `_layers`."""
    unet = checkpoint.unet
    whole = dict.fromkeys(_layers_of(unet), unet.architecture)
    if not is_stable_diffusions(unet):
        architecture = Architecture.sd15(unet.architecture.widths)
        with torch.device("meta"):
            ancestor: ElasticUNet = ElasticUNet.from_config({**unet.config, "architecture": architecture.to_dict()})
        whole |= {name: architecture for name in _layers_of(ancestor) if name not in whole}
    names = {name: name for name in layers} | {f"unet.{name}": f"unet.{name}" for name in whole}
    for name in list(names):
        part, _, path = name.partition(".")
        prefixes = ("lora_unet_",) if part == "unet" else ("lora_te_", "lora_te1_")
        names |= {prefix + path.replace(".", "_"): name for prefix in prefixes}
        names |= {path: name, f"{part}.{path.removeprefix(CLIP_PREFIX)}": name}  # PEFT's, and those of transformers 5
    renames = {id(architecture): unet_names(architecture) for architecture in whole.values()}
    for name, architecture in whole.items():
        original = renames[id(architecture)](f"{name}.weight").removeprefix(UNET).removesuffix(".weight")
        names["lora_unet_" + original.replace(".", "_")] = f"unet.{name}"
    return names


def _name(target: str, names: Mapping[str, str]) -> str | None:
    target = target.replace("base_model.model.", "", 1)
    for pattern, replacement in OLD_NAMES:
        target = re.sub(pattern, replacement, target)
    return names.get(target)


def _product(file: Path, name: str, change: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """up @ down in the shape of the weight; a convolution's up has one point."""
    down, up = change["down"].flatten(1), change["up"].flatten(1)
    if up.shape[1] != down.shape[0] or up.shape[0] * down.shape[1] != weight.numel() or len(up) != len(weight):
        got = f"up {list(change['up'].shape)} and down {list(change['down'].shape)}"
        raise ValueError(f"{file}: {name}: got {got}, expected a product of shape {list(weight.shape)}")
    return (up @ down).reshape(weight.shape)


def _strength(name: str, change: Mapping[str, Tensor], settings: Mapping[str, Any]) -> float:
    """alpha / r; alpha is r where nothing says otherwise. `rslora` (arXiv 2312.03732) divides by the root of r."""
    part, _, path = name.partition(".")
    rank = len(change["down"])
    alpha = change["alpha"].item() if "alpha" in change else settings.get(f"{part}.lora_alpha", rank)
    for pattern, value in cast("dict[str, float]", settings.get(f"{part}.alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if settings.get(f"{part}.use_rslora") else rank)
