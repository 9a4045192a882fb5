"""ONNX and ONNX Runtime: a torch module to a file, a file to a callable. Only who exports brings torch and onnx."""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from snapfusion.runtimes.choice import Precision
from snapfusion.runtimes.quantisation import Calibration, Run, weights_and_activations

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE, WEIGHTS = "model.onnx", "model.onnx_data"  # of one network, as optimum names them
OPSET = 20  # the first with a group norm's neighbours all native; ONNX Runtime 1.17 and later read it


def export(
    module: Any,
    example: Mapping[str, Any],
    output: str,
    folder: Path,
    precision: Precision = "fp32",
    calibration: Calibration | None = None,
) -> None:
    """Write a torch module with one output to `folder`.

    Args:
        module: In evaluation mode, float32.
        example: Tensors by the name of an argument of `module.forward`. Their shapes are fixed in the file, but for the
            batch: the first axis of those that have more than one.
        output: Name of the output.
        folder: Gets `FILE`, and `WEIGHTS` beside it.
        precision: `fp32`; or `w8a8`, weights and activations as int8. Weights alone are not offered: ONNX Runtime
            widens them at every call, which took twice the time of float32.
        calibration: What `w8a8` goes by.

    Raises:
        OSError: the file cannot be written.
    """
    import onnx

    with TemporaryDirectory() as scratch, _quiet():
        plain = Path(scratch) / FILE
        _convert(module, example, output, plain)
        model = onnx.load(plain) if precision == "fp32" else _quantised(plain, calibration)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        onnx.save_model(
            model, str(folder / FILE), save_as_external_data=True, location=WEIGHTS, all_tensors_to_one_file=True
        )
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"cannot write a network ({error})", str(folder)) from error


def open(folder: Path, batch: int, threads: int | None = None, also: Sequence[int] = ()) -> Network:
    """The network in `folder`, on the CPU; how many rows it takes may change from call to call.

    `threads` is how many the CPU may use, None leaves it to ONNX Runtime. Nothing is cached outside the process.
    """
    try:
        session = ort.InferenceSession(folder / FILE, _options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no base of their own
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"{folder / FILE}: got a file that ONNX Runtime cannot open ({reason}); export it again"
        ) from error
    return Network(session)


def precision() -> str:
    """What networks compute in here, integers apart."""
    return "f32"


class Network:
    """A network from a file: arrays in by name, its one output out."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run it on inputs of one batch size."""
        return cast(Any, self.session.run(None, inputs)[0])


def _options(threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns of every constant that it leaves alone
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _convert(module: Any, example: Mapping[str, Any], output: str, file: Path) -> None:
    import torch

    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module,
        kwargs=dict(example),
        input_names=list(example),
        output_names=[output],
        dynamic_shapes={name: {0: batch} if tensor.ndim > 1 else None for name, tensor in example.items()},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(file, external_data=True)


def _quantised(file: Path, calibration: Calibration | None) -> Any:
    import onnx

    assert calibration is not None, "w8a8 goes by a calibration"
    return weights_and_activations(onnx.load(file), calibration, _opened)


def _opened(model: Any) -> Run:
    """A graph in memory as a function; at most 2 GB, as much as the format puts into one piece."""
    session = ort.InferenceSession(model.SerializeToString(), _options(None), providers=["CPUExecutionProvider"])
    return lambda inputs: cast(Any, session.run(None, dict(inputs))[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of torch's exporter: that torchvision is missing, and which constants it did not fold."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
