"""OpenVINO: a torch module to a file, a file to a callable. It draws on the CPU; only who exports brings torch."""

# pyright: reportMissingImports=false
# The extra genai is for those who ask for it.

import errno
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from snapfusion.runtimes.choice import Precision
from snapfusion.runtimes.quantisation import (
    Calibration,
    weights_and_activations,
    weights_only,
    weights_only_linear_smaller,
    weights_only_words_smaller,
)

Weights = Literal["fp16", "int8"]  # that need no calibration

CORE = ov.Core()
FILES = ("openvino_model.xml", "openvino_model.bin")  # of one network, as optimum names them


def export(
    module: Any,
    example: Mapping[str, Any],
    output: str,
    folder: Path,
    weights: Precision = "fp16",
    calibration: Calibration | None = None,
) -> dict[str, list[int]]:
    """Write a torch module with one output to `folder`.

    Args:
        module: In evaluation mode, float32.
        example: Tensors by the name of an argument of `module.forward`. Their shapes are fixed in the file, but for the
            batch: the first axis of those that have more than one.
        output: Name of the output.
        folder: Gets `FILES`.
        weights: Stored as float16, or as int8 with a scale for every output channel, which halves the file, with `int4`
            linear layers and with `int4-words` tables of words once more; with `w8a8` what meets them is int8 too,
            which is faster where the CPU has instructions for it.
        calibration: What `w8a8` goes by.
    Returns:
        The shape of every input, -1 for the batch.

    Raises:
        OSError: the file cannot be written.
    """
    shapes = {name: [-1, *tensor.shape[1:]] if tensor.ndim > 1 else [*tensor.shape] for name, tensor in example.items()}
    model = ov.convert_model(_traced(module, example))
    model.reshape(shapes)
    for name in shapes:
        model.input(name).get_tensor().set_names({name})  # tracing adds names of its own
    model.output(0).get_tensor().set_names({output})
    if weights == "int8":
        model = weights_only(model)
    elif weights == "int4":
        model = weights_only_linear_smaller(model)
    elif weights == "int4-words":
        model = weights_only_words_smaller(model)
    elif weights == "w8a8":
        assert calibration is not None, "w8a8 goes by a calibration"
        model = weights_and_activations(model, calibration, lambda compiled: lambda inputs: compiled(inputs)[0])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        ov.save_model(model, folder / FILES[0], compress_to_fp16=True)
    except RuntimeError as error:  # which does not say why
        raise OSError(errno.EIO, f"cannot write a network, perhaps the disk is full ({error})", str(folder)) from error
    return shapes


def _traced(module: Any, example: Mapping[str, Any]) -> Any:
    """`module`, traced for OpenVINO to convert. By itself it has torch trace twice and compare, in twice the time; the
    parity of `snapfusion export` finds what that would."""
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    return TorchScriptPythonDecoder(module, example_input=dict(example), trace_kwargs={"check_trace": False})


def export_tokenizer(folder: Path) -> None:
    """Write OpenVINO's own form of the tokenizer in `folder` beside it, for programs without one: OpenVINO GenAI.

    Raises `ModuleNotFoundError` without openvino-tokenizers: the extra `genai`.
    """
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    both = convert_tokenizer(tokenizer, with_detokenizer=True, truncation=True)
    models = cast(tuple[ov.Model, ov.Model], both)
    for name, model in zip(("openvino_tokenizer", "openvino_detokenizer"), models, strict=True):
        ov.save_model(model, folder / f"{name}.xml")


def open(folder: Path, batch: int, threads: int | None = None, also: Sequence[int] = ()) -> "Network":
    """The network in `folder`, compiled for inputs of `batch` rows and of `also`; other sizes compile when they come.

    `threads` is how many the CPU may use, None leaves it to OpenVINO. Nothing is cached outside the process.
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision(),
        "PERFORMANCE_HINT": "LATENCY",
        # Else OpenVINO rounds what meets int8 weights to int8 too: five times the error of the text encoder, and on the
        # stickers UNet no gain.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    network = Network(folder / FILES[0], settings)
    with ThreadPoolExecutor() as pool:  # compiling keeps one core busy
        list(pool.map(network.compile, (batch, *also)))
    return network


def precision() -> Literal["bf16", "f32"]:
    """What networks compute in here: bfloat16 where the CPU has instructions for it, else float32."""
    return "bf16" if "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


class Network:
    """A network from a file: arrays in by name, its one output out."""

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.file = file
        self.settings = dict(settings)
        self.requests: dict[int, ov.InferRequest] = {}

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run it on inputs of one batch size."""
        batch = next(len(array) for array in inputs.values() if array.ndim > 1)
        if batch not in self.requests:
            self.compile(batch)
        output = self.requests[batch].infer(inputs)[0]
        return output.copy()  # the next call writes over it

    def compile(self, batch: int) -> None:
        """Prepare for inputs of `batch` rows.

        A fixed batch makes the first call four times as fast as an open one, and every other by a quarter.
        """
        try:
            model = CORE.read_model(self.file)
            model.reshape({port.any_name: _with_batch(port.partial_shape, batch) for port in model.inputs})
        except RuntimeError as error:
            raise ValueError(
                f"{self.file}: got a file that OpenVINO cannot open ({_last_line(error)}); export it again"
            ) from error
        try:
            self.requests[batch] = CORE.compile_model(model, "CPU", self.settings).create_infer_request()
        except RuntimeError as error:
            raise ValueError(
                f"{self.file}: OpenVINO cannot make it ready to run ({_last_line(error)}); it may lack memory, which "
                "--low-memory needs less of"
            ) from error


def _last_line(error: Exception) -> str:
    """The reason: what comes before it says where in OpenVINO's own sources it was found."""
    return str(error).strip().splitlines()[-1]


def _with_batch(shape: ov.PartialShape, batch: int) -> ov.PartialShape:
    """`shape` with its open first axis fixed; as it is where nothing is open."""
    return ov.PartialShape([batch, *list(shape)[1:]]) if shape.is_dynamic else shape
