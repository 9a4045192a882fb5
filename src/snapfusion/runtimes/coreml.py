"""Core ML: a torch module to an mlpackage, on any system; an mlpackage to a callable, on a Mac."""

# pyright: reportMissingImports=false
# The extra coreml is for those who ask for it.

from __future__ import annotations

import copy
import logging
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfusion.runtimes.choice import Precision
from snapfusion.runtimes.quantisation import Calibration

FILE = "model.mlpackage"
BITS = 6  # of the palettes
TORCH_BOOL = 11  # bool's number in a traced graph


def export(
    module: Any,
    example: Mapping[str, Any],
    output: str,
    folder: Path,
    precision: Precision = "fp16",
    calibration: Calibration | None = None,
    halves: bool = False,
) -> None:
    """Write a torch module with one output to `folder`, as an mlprogram in float16 for one row at a time.

    Args:
        module: In evaluation mode, float32. A UNet's attention is written for the Neural Engine.
        example: Tensors by the name of an argument of `module.forward`.
        output: Name of the output.
        folder: Gets `FILE`.
        precision: `fp16`; or `palette6`, weights as one of 64 values for each layer.
        calibration: Not needed.
        halves: As two programs in one package, one behind the other: the Neural Engine of a phone may not take a whole.
    """
    import coremltools as ct

    del calibration
    _fill_gaps()
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    row = {name: tensor[:1] if tensor.ndim > 1 else tensor for name, tensor in example.items()}
    model: Any = ct.convert(
        _traced(module, row),
        inputs=[ct.TensorType(name, tuple(value.shape), _type(value)) for name, value in row.items()],
        outputs=[ct.TensorType(output, dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT16,
        compute_units=ct.ComputeUnit.CPU_AND_NE,
        skip_model_load=True,
    )
    if precision == "palette6":
        palettes = ct.optimize.coreml.OpPalettizerConfig(mode="kmeans", nbits=BITS)
        model = ct.optimize.coreml.palettize_weights(model, ct.optimize.coreml.OptimizationConfig(palettes))
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / FILE))
    if halves:
        _halve(folder / FILE)


def open(folder: Path, batch: int, threads: int | None = None, also: Sequence[int] = ()) -> Network:
    """The network in `folder`; rows run one after another, where Core ML decides. Raises `ValueError` but on a Mac."""
    del batch, threads, also
    if sys.platform != "darwin":
        raise ValueError(f"got runtime coreml on {sys.platform}, expected a Mac: Core ML runs nowhere else")
    import coremltools as ct

    return Network(ct.models.MLModel(str(folder / FILE), compute_units=ct.ComputeUnit.CPU_AND_NE))


def precision() -> str:
    """What networks compute in."""
    return "f16"


class Network:
    """A network from a file: arrays in by name, its one output out."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run it on inputs of one batch size."""
        rows = next(len(array) for array in inputs.values() if array.ndim > 1)
        outputs = [
            self.model.predict(
                {name: array[k : k + 1] if array.ndim > 1 else array.astype(np.int32) for name, array in inputs.items()}
            )
            for k in range(rows)
        ]
        return np.concatenate([next(iter(output.values())) for output in outputs]).astype(np.float32)


def _traced(module: Any, row: Mapping[str, Any]) -> Any:
    import torch

    from snapfusion.model.neural_engine import SplitEinsum
    from snapfusion.model.parts import Unet

    if isinstance(module, Unet):
        module = copy.deepcopy(module)
        module.unet.set_attn_processor(SplitEinsum())
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        return torch.jit.trace(module, example_kwarg_inputs=dict(row), check_trace=False)


def _type(tensor: Any) -> type[np.generic]:
    return np.float32 if tensor.is_floating_point() else np.int32


def _fill_gaps() -> None:
    """coremltools 9 lacks `new_ones`, and calls `int` on arrays of one element, which NumPy 2.4 no longer answers."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch import register_torch_op
    from coremltools.converters.mil.frontend.torch.ops import _cast, _get_inputs

    def _int(context: Any, node: Any) -> None:
        (x,) = _get_inputs(context, node, expected=1)
        if x.can_be_folded_to_const() and np.ndim(x.val):
            context.add(Builder.const(val=int(np.asarray(x.val).item()), name=node.name), node.name)
        else:
            _cast(context, node, int, "int32")

    def new_ones(context: Any, node: Any) -> None:
        _, shape, kind, *_ = _get_inputs(context, node)  # all known, as sizes are
        sizes = [size.val for size in shape] if isinstance(shape, list) else shape.val
        true = kind is not None and kind.val == TORCH_BOOL
        ones = np.ones(np.asarray(sizes, int), bool if true else np.float32)
        context.add(Builder.const(val=ones[()], name=node.name))

    register_torch_op(_int, torch_alias=["int"], override=True)
    register_torch_op(new_ones, override=True)


def _halve(package: Path) -> None:
    """Replace a package by one whose program was cut in two of about the same size."""
    import coremltools as ct

    with TemporaryDirectory() as scratch:
        ct.models.utils.bisect_model(
            str(package), scratch, merge_chunks_to_pipeline=True, check_output_correctness=False
        )
        shutil.rmtree(package)
        shutil.move(Path(scratch) / f"{package.stem}_chunked_pipeline.mlpackage", package)
