"""What a model costs before it is run: parameters, bytes and multiply-accumulates of each part that draws."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov
import torch

from snapfusion.bundle import Part
from snapfusion.checkpoint import Checkpoint
from snapfusion.generate import OpenBundle
from snapfusion.model.operations import operations_of
from snapfusion.runtimes.openvino import CORE, FILES
from snapfusion.sampling import decode, embed, latent_shape

PARTS: tuple[Part, ...] = ("text_encoder", "unet", "vae_decoder")
DECODING = ("decoder.", "post_quant_conv.")  # what an autoencoder's names begin with, its encoder apart


@dataclass(frozen=True)
class Cost:
    """Of one part."""

    parameters: int
    bytes: int
    """As stored: of the bundle's files, or of the weights in the checkpoint's."""
    macs: int
    """Multiply-accumulates of convolutions, matrix products and attention for one prompt or one latent."""


def costs_of(opened: OpenBundle | Checkpoint, folder: Path) -> dict[Part, Cost]:
    """What each part of the bundle or checkpoint in a folder costs; nothing for a bundle without OpenVINO's graphs."""
    if isinstance(opened, OpenBundle):
        if "openvino" not in opened.bundle.manifest.runtimes:
            return {}
        return {part: _cost_of_graph(folder / part) for part in PARTS}
    return _costs_of_checkpoint(opened, folder)


def macs_of_picture(costs: Mapping[Part, Cost], steps: int, guided: int) -> int:
    """Multiply-accumulates from a prompt to its picture; guidance reads twice, and predicts twice in `guided` steps."""
    texts = 2 if guided else 1
    return texts * costs["text_encoder"].macs + (steps + guided) * costs["unet"].macs + costs["vae_decoder"].macs


# ---------------------------------------------------------------------------------------------------------------------
# A bundle: what stands in OpenVINO's graph


def _cost_of_graph(folder: Path) -> Cost:
    model = CORE.read_model(folder / FILES[0])
    model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
    size = sum((folder / name).stat().st_size for name in FILES)
    return Cost(_parameters(model), size, sum(_macs(node) for node in model.get_ops()))


def _parameters(model: ov.Model) -> int:
    """Numbers in constants of floats or small integers, single ones and the scales of integer weights apart."""
    scales: set[str] = set()
    for node in model.get_ops():
        if node.get_type_name() == "Multiply":
            sides = [_behind_conversion(node, side) for side in (0, 1)]
            stored = [side.get_type_name() == "Constant" and _is_integer_weight(side) for side in sides]
            scales |= {side.get_friendly_name() for side, other in zip(sides, reversed(stored), strict=True) if other}
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    return sum(
        math.prod(node.get_output_shape(0))
        for node in constants
        if (_is_integer_weight(node) or node.get_element_type().is_real())
        and node.get_friendly_name() not in scales
        and math.prod(node.get_output_shape(0)) > 1
    )


def _behind_conversion(node: Any, side: int) -> Any:
    """What feeds an input, a change of type left out."""
    source = node.input_value(side).get_node()
    return source.input_value(0).get_node() if source.get_type_name() == "Convert" else source


def _is_integer_weight(node: Any) -> bool:
    return node.get_element_type().get_type_name() in ("i4", "u4", "i8", "u8")


def _macs(node: Any) -> int:
    """Multiply-accumulates of one node."""
    kind = node.get_type_name()
    out = math.prod(node.get_output_shape(0)) if node.get_output_size() else 0
    if kind == "Convolution":  # weights [O, I, kh, kw]
        return out * math.prod(node.get_input_shape(1)[1:])
    if kind == "GroupConvolution":  # weights [G, O, I, kh, kw]
        return out * math.prod(node.get_input_shape(1)[2:])
    if kind == "MatMul":
        return out * node.get_input_shape(0)[-2 if node.get_attributes()["transpose_a"] else -1]
    if kind == "ScaledDotProductAttention":  # query [..., L, E], key [..., S, E], value [..., S, E']
        query, key, value = (node.get_input_shape(place) for place in range(3))
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# A checkpoint: what torch runs


def _costs_of_checkpoint(checkpoint: Checkpoint, folder: Path) -> dict[Part, Cost]:
    unet, vae, text_encoder = checkpoint.unet, checkpoint.vae, checkpoint.text_encoder
    latent = torch.zeros(1, *latent_shape(checkpoint), device=unet.device)
    embedding = torch.zeros(1, checkpoint.length, text_encoder.width, device=unet.device)
    decoder = [weight for name, weight in vae.named_parameters() if name.startswith(DECODING)]
    return {
        "text_encoder": Cost(
            _count(text_encoder.parameters()), _stored(folder / "text_encoder"), _run(lambda: embed(checkpoint, [""]))
        ),
        "unet": Cost(_count(unet.parameters()), _stored(folder / "unet"), _run(lambda: unet(latent, 1, embedding))),
        "vae_decoder": Cost(_count(decoder), _stored(folder / "vae", DECODING), _run(lambda: decode(vae, latent))),
    }


def _count(weights: Iterable[torch.Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


@torch.inference_mode()
def _run(network: Callable[[], object]) -> int:
    """Multiply-accumulates of a call."""
    return operations_of(network) // 2


def _stored(folder: Path, prefixes: tuple[str, ...] = ("",)) -> int:
    """Bytes that the weights of such names take in the safetensors files of a folder, each weight once."""
    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors"), reverse=True):  # a plain file goes before its .fp16 double
        with file.open("rb") as stream:  # 8 bytes that say how long the JSON header is, then that
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and name.startswith(prefixes):
                start, end = entry["data_offsets"]
                sizes.setdefault(name, end - start)
    return sum(sizes.values())
