"""ExecuTorch with XNNPACK, which runs on phones: a torch module to a .pte, a .pte to a callable."""

# pyright: reportMissingImports=false
# The extra executorch is for those who ask for it.

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snapfusion.runtimes.choice import Precision
from snapfusion.runtimes.quantisation import Calibration

FILE = "model.pte"
# A program knows its inputs by their place alone: those of every part, in the order of `forward`.
ORDER = ("input_ids", "latent_sample", "sample", "timestep", "encoder_hidden_states")


def export(
    module: Any,
    example: Mapping[str, Any],
    output: str,
    folder: Path,
    precision: Precision = "fp32",
    calibration: Calibration | None = None,
) -> None:
    """Write a torch module with one output to `folder`, for one row at a time.

    Args:
        module: In evaluation mode, float32.
        example: Tensors by the name of an argument of `module.forward`, which come in `ORDER`.
        output: Not in the file, which does not name outputs.
        folder: Gets `FILE`.
        precision: `fp32`; or `w8a8`, weights and activations of convolutions and linear layers as int8, none spared.
        calibration: What `w8a8` goes by.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    row = {name: _row(example[name], 0) for name in ORDER if name in example}
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.export.export(module, (), kwargs=row)
        if precision == "w8a8":
            assert calibration is not None, "w8a8 goes by a calibration"
            program = torch.export.export(_quantised(program, row, calibration), (), kwargs=row)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("wb") as stream:
        lowered.write_to_file(stream)


def open(folder: Path, batch: int, threads: int | None = None, also: Sequence[int] = ()) -> Network:
    """The network in `folder`; rows run one after another. `threads` holds for the process."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    if threads is not None:
        portable_lib._unsafe_reset_threadpool(threads)
    try:
        program = Runtime.get().load_program(folder / FILE)
        return Network(program, program.load_method("forward"))
    except RuntimeError as error:
        raise ValueError(
            f"{folder / FILE}: got a file that ExecuTorch cannot open ({error}); export it again"
        ) from error


def precision() -> str:
    """What networks compute in here, integers apart."""
    return "f32"


class Network:
    """A network from a file: arrays in by name, its one output out."""

    def __init__(self, program: Any, method: Any) -> None:
        self.program = program  # which the method reads its weights from
        self.method = method

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run it on inputs of one batch size."""
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in ORDER if name in inputs]
        rows = next(len(tensor) for tensor in tensors if tensor.ndim > 1)
        outputs = [self.method.execute([_row(tensor, k) for tensor in tensors])[0].clone() for k in range(rows)]
        return torch.cat(outputs).numpy()


def _row(tensor: torch.Tensor, k: int) -> torch.Tensor:
    """One row of an input; all of it where it has none."""
    return tensor[k : k + 1].contiguous() if tensor.ndim > 1 else tensor


def _quantised(program: Any, row: Mapping[str, Any], calibration: Calibration) -> Any:
    """The program's module with weights and activations as int8, ranges as the samples show them."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    for sample in calibration.samples:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(sample[name])) for name in row}
        rows = next(len(tensor) for tensor in tensors.values() if tensor.ndim > 1)
        for k in range(rows):
            prepared(**{name: _row(tensor, k) for name, tensor in tensors.items()})
    return convert_pt2e(prepared)
