"""What runs a network: opened by an engine, it is a function without arguments, to be called as often as one likes.

What is timed is the network alone: inputs lie where the engine reads them, and its output is not copied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol

import openvino as ov
import torch

from snapfusion.runtimes import openvino
from snapfusion.stages.profile.sketch import ROWS, Sketch

Run = Callable[[], object]
Runtime = Literal["openvino", "torch"]


@dataclass(frozen=True)
class Opened:
    """A network, ready to run."""

    runs: Mapping[int, Run]
    """By the batch."""
    bytes: int
    """Of its weights as they are stored."""
    threads: int
    """That it runs on."""


class Engine(Protocol):
    """Opens sketches, filled at random."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str:
        """What it computes in."""
        ...

    def open(self, sketch: Sketch, batches: Sequence[int]) -> Opened: ...


@dataclass(frozen=True)
class OpenVINO:
    """OpenVINO on the CPU, as bundles are drawn with."""

    weights: openvino.Weights = "fp16"
    threads: int | None = None

    @property
    def name(self) -> str:
        return f"OpenVINO {ov.__version__.split('-')[0]}, {self.weights} weights"

    @property
    def precision(self) -> str:
        return openvino.precision()

    def open(self, sketch: Sketch, batches: Sequence[int]) -> Opened:
        with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
            # Tracing warns that it takes sizes for fixed, which here they are.
            openvino.export(sketch.filled(), sketch.inputs(ROWS), "output", Path(folder), self.weights)
            network = openvino.open(Path(folder), batches[0], self.threads)
            for batch in batches[1:]:
                network.compile(batch)
            size = (Path(folder) / openvino.FILES[1]).stat().st_size
        runs = {batch: self._run(network.requests[batch], sketch, batch) for batch in batches}
        compiled = network.requests[batches[0]].get_compiled_model()
        return Opened(runs, size, compiled.get_property("INFERENCE_NUM_THREADS"))

    def _run(self, request: ov.InferRequest, sketch: Sketch, batch: int) -> Run:
        inputs = {name: value.numpy() for name, value in sketch.inputs(batch).items()}
        return partial(request.infer, inputs, share_inputs=True, share_outputs=True)


@dataclass(frozen=True)
class Torch:
    """torch on the CPU in float32, op by op. `threads` holds for the whole process."""

    threads: int | None = None

    @property
    def name(self) -> str:
        return f"torch {torch.__version__}"

    @property
    def precision(self) -> str:
        return "f32"

    def open(self, sketch: Sketch, batches: Sequence[int]) -> Opened:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        module = sketch.filled()

        def run(inputs: Mapping[str, torch.Tensor]) -> None:
            with torch.inference_mode():
                module(**inputs)

        runs = {batch: partial(run, sketch.inputs(batch)) for batch in batches}
        size = sum(parameter.nbytes for parameter in module.parameters())
        return Opened(runs, size, torch.get_num_threads())


def engine(runtime: Runtime, threads: int | None = None, weights: openvino.Weights = "fp16") -> Engine:
    """The engine of a runtime. `weights` are how OpenVINO stores them; torch's are float32."""
    return OpenVINO(weights, threads) if runtime == "openvino" else Torch(threads)


def device() -> str:
    """What the processor calls itself."""
    return openvino.CORE.get_property("CPU", "FULL_DEVICE_NAME")
