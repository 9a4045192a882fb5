"""torch: safetensors to a callable on arrays. In float32 it is the reference that other runtimes are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snapfusion.autocast import has_bf16
from snapfusion.checkpoint import WEIGHTS, Checkpoint, build, load_text_encoder, load_unet, save_text_encoder, save_unet
from snapfusion.json_file import read_json
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.parts import Decoder, Unet
from snapfusion.weights import fill, read_weights, write_weights

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ONE_AT_A_TIME = Lock()  # a network is built without weights, which is a state of the whole process while it lasts


class Network:
    """A module with one output, called with arrays by the names of its arguments; in the module's type and place."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        first = next(module.parameters())
        self.dtype, self.device = first.dtype, first.device

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            output = self.module(**{name: self._tensor(array) for name, array in inputs.items()})
        return output.float().contiguous().cpu().numpy()

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if not tensor.is_floating_point():
            return tensor.to(self.device)
        layout = torch.channels_last if tensor.ndim == 4 and self.dtype != torch.float32 else torch.preserve_format
        return tensor.to(self.device, self.dtype, memory_format=layout)


def export_part(part: str, checkpoint: Checkpoint, out: Path, precision: str) -> None:
    """Write one network's weights to the bundle `out`, under the names that diffusers and transformers read."""
    if part == "text_encoder":
        save_text_encoder(checkpoint.text_encoder, out, DTYPES[precision])
    elif part == "unet":
        save_unet(checkpoint.unet, out, DTYPES[precision])
    else:
        decoder = Decoder(checkpoint.vae)
        write_weights(decoder.state_dict(), out / part / f"{WEIGHTS}.safetensors", DTYPES[precision])


def open(folder: Path, batch: int, threads: int | None = None, also: Sequence[int] = ()) -> Network:
    """The network in `folder`, on the GPU where there is one; how many rows it takes may change from call to call.

    It computes in bfloat16 where the device has instructions for it, else in float32. `threads` holds for the process.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ONE_AT_A_TIME:
        module: Any = _read(folder).to(device)
    if precision() == "bf16":  # whose convolutions prefer this layout
        module = module.to(torch.bfloat16, memory_format=torch.channels_last)
    return Network(module.eval())


def precision() -> str:
    """What networks compute in here: see `open`."""
    return "bf16" if has_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else "f32"


def _read(folder: Path) -> nn.Module:
    if folder.name == "text_encoder":
        return load_text_encoder(folder.parent)
    if folder.name == "unet":
        return Unet(load_unet(folder.parent))
    file = folder / "config.json"
    vae = build(lambda config: cast(PatchAutoencoderKL, PatchAutoencoderKL.from_config(config)), read_json(file), file)
    return fill(Decoder(vae), read_weights(folder, WEIGHTS), folder)
