"""How fast an engine is at its best, in matrix multiplications: what its networks' speed is a share of."""

import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from snapfusion.costs import matrix_speed
from snapfusion.runtimes import openvino
from snapfusion.runtimes.quantisation import Calibration
from snapfusion.stages.profile.engines import Opened, engine
from snapfusion.stages.profile.sketch import Sketch
from snapfusion.stages.profile.table1 import peak_of


@cache
def peak_speed(by_torch: bool, precision: str) -> float:
    """Operations a second that an engine reaches in matrix multiplications."""
    if precision == "int8":
        return peak_of(Int8())
    if by_torch and precision == "bf16":
        return matrix_speed()
    return peak_of(engine("torch" if by_torch else "openvino"))


class Int8:
    """OpenVINO with weights and activations in int8, as an engine of `snapfusion profile`."""

    name, precision = "OpenVINO, w8a8", "int8"

    def open(self, sketch: Sketch, batches: Sequence[int]) -> Opened:
        module, (rows,) = sketch.filled(), batches
        inputs = sketch.inputs(rows)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        with torch.no_grad():
            right = module(**inputs).numpy()
        calibration = Calibration([arrays], [(arrays, right)], floor_db=0)
        with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
            openvino.export(module, inputs, "output", Path(folder), "w8a8", calibration)
            request = openvino.open(Path(folder), rows).requests[rows]
        compiled = request.get_compiled_model()
        run = partial(request.infer, arrays, share_inputs=True, share_outputs=True)
        return Opened({rows: run}, 0, compiled.get_property("INFERENCE_NUM_THREADS"))
