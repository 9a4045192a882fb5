"""Which runtimes there are, what each calls its files and needs to be installed, and which one draws a bundle.

The module that knows a runtime, `snapfusion.runtimes.NAME`, has

    export(module, example, output, folder, precision, ...)   a torch module to files; who calls it has torch
    open(folder, batch, threads, also)                        files to a callable on arrays

and is imported only when it is used: engines are heavy.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Literal, get_args

Part = Literal["text_encoder", "unet", "vae_decoder"]
Runtime = Literal["openvino", "onnx", "coreml", "executorch", "torch"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "int4-words", "w8a8", "palette6"]
"""How weights are stored. `int4` is int8 with linear layers in 4 bits, `int4-words` with the text encoder's table of
words. `w8a8` alone says that what meets them is rounded too, to int8 as they are; `palette6` gives a layer 64 values to
choose its weights from."""

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Needs:
    """A runtime, seen from outside."""

    package: str
    """What has to be there to draw."""
    extra: str
    """The extra of `snapfusion` that installs it; "" for none."""
    files: Mapping[Part, tuple[str, ...]]
    """What a part's folder must hold."""
    precisions: tuple[Precision, ...]
    """What a part can be exported as, its own choice first."""
    words: tuple[Precision, ...] = ()
    """What besides only the text encoder can be exported as."""
    system: str = ""
    """The one system that it draws on, as `sys.platform` says; "" for any."""


# Best first, as measured on CPUs; torch goes first where it finds a GPU.
RUNTIMES: dict[Runtime, Needs] = {
    "openvino": Needs(
        "openvino",
        "",
        dict.fromkeys(PARTS, ("openvino_model.xml", "openvino_model.bin")),
        ("int8", "fp16", "int4", "w8a8"),
        words=("int4-words",),
    ),
    "onnx": Needs("onnxruntime", "onnx", dict.fromkeys(PARTS, ("model.onnx",)), ("fp32", "w8a8")),
    "coreml": Needs(
        "coremltools",
        "coreml",
        dict.fromkeys(PARTS, ("model.mlpackage/Manifest.json", "model.mlpackage/Data/com.apple.CoreML/model.mlmodel")),
        ("fp16", "palette6"),
        system="darwin",
    ),
    "executorch": Needs("executorch", "executorch", dict.fromkeys(PARTS, ("model.pte",)), ("fp32", "w8a8")),
    "torch": Needs(
        "torch",
        "compress",
        {
            "text_encoder": ("model.safetensors",),
            "unet": ("diffusion_pytorch_model.safetensors",),
            "vae_decoder": ("diffusion_pytorch_model.safetensors",),
        },
        ("bf16", "fp32"),
    ),
}


def choose(held: Iterable[Runtime], wanted: str | None = None) -> Runtime:
    """The runtime to draw with, of those that a bundle holds files of: the one that is wanted, or the best installed.

    Raises `ValueError` where the bundle does not hold it, or where it is not installed, with what would install it.
    """
    offered: list[Runtime] = [name for name in RUNTIMES if name in {*held}]
    if wanted is not None and wanted not in RUNTIMES:
        raise ValueError(f"got runtime {wanted!r}, expected one of {', '.join(RUNTIMES)}")
    if wanted is not None and wanted not in offered:
        raise ValueError(
            f"got runtime {wanted!r}, expected {' or '.join(offered)}, which this bundle is made for; "
            f"to make one for {wanted}: snapfusion export CHECKPOINT --runtime {wanted}"
        )
    asked: list[Runtime] = [name for name in offered if wanted in (None, name)]
    ready: list[Runtime] = [name for name in asked if draws_here(name)]
    if not ready:
        raise ValueError(" or ".join(map(missing, asked)))
    return "torch" if "torch" in ready and _finds_gpu() else ready[0]


def draws_here(runtime: Runtime) -> bool:
    """Whether it is installed, and runs on this system."""
    return is_installed(runtime) and RUNTIMES[runtime].system in ("", sys.platform)


def is_installed(runtime: Runtime) -> bool:
    """Whether what it needs is there; nothing is imported."""
    return find_spec(RUNTIMES[runtime].package) is not None


def missing(runtime: Runtime) -> str:
    """What to say where a runtime does not draw."""
    needs = RUNTIMES[runtime]
    if needs.system not in ("", sys.platform):
        return f"{runtime} draws on {needs.system} alone, and this is {sys.platform}"
    name = f".[{needs.extra}]" if needs.extra else "."
    return f'{runtime} needs {needs.package}, which is not installed; in a clone: pip install "{name}"'


def load(runtime: Runtime) -> ModuleType:
    """The module that knows a runtime."""
    return import_module(f"snapfusion.runtimes.{runtime}")


def _finds_gpu() -> bool:
    import torch  # seconds: only a bundle that holds files of torch comes here

    return torch.cuda.is_available()
