"""int8, and less, by NNCF's post-training quantisation, for graphs of OpenVINO and of ONNX alike."""

import logging
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Graph = TypeVar("Graph")
Inputs = Mapping[str, NDArray[Any]]
Run = Callable[[Inputs], NDArray[Any]]
NO_ERROR_DB = 120.0  # what equal arrays get
WORD_GROUP = 128  # divides the widths of MiniLM's and CLIP's tables
LINEAR_GROUP = 64  # divides most widths of UNets: Stable Diffusion's 320, 640, 1280, the sticker base's 128, 192, 256


@dataclass(frozen=True)
class Calibration:
    """What a network meets when it draws, and how near it has to stay to what it answers in float32."""

    samples: Sequence[Inputs]
    """Inputs; the range of every activation is what they show."""
    checks: Sequence[tuple[Inputs, NDArray[np.float32]]]
    """Others, with the outputs of the network in float32."""
    floor_db: float
    """Layers are kept in floating point, those first that hurt most, until the outputs are this near."""
    half_range: bool = False
    """Whether weights keep to half of int8's range: see `saturates`."""


def weights_only(graph: Graph) -> Graph:
    """Weights as int8 with a scale for every output channel; what meets them stays as it is."""
    nncf = _nncf()
    return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)


def weights_only_words_smaller(graph: Graph) -> Graph:
    """The same with 4 bits for every table whose rows are looked up, a scale for each `WORD_GROUP` values of a row.

    A text encoder's largest weight is its table of words, of which a prompt meets a few rows, each once.
    """
    return weights_only(_four_bits(graph, WORD_GROUP, ("MatMul", "Convolution")))


def weights_only_linear_smaller(graph: Graph) -> Graph:
    """The same with 4 bits for the weights of linear layers, a scale for each `LINEAR_GROUP` values of a row.

    Convolutions keep 8: in a UNet they are what the first and the last layers are, which rounding hurts most.
    """
    return weights_only(_four_bits(graph, LINEAR_GROUP, ("Gather", "Convolution")))


def _four_bits(graph: Graph, group: int, spared: Sequence[str]) -> Graph:
    """4 bits for all weights but those of the operations `spared`, a scale for each `group` values of a row."""
    nncf = _nncf()
    return nncf.compress_weights(
        graph,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=group,
        all_layers=True,  # else tables, and the last layer, are spared
        ignored_scope=nncf.IgnoredScope(types=list(spared), validate=False),
        advanced_parameters=nncf.AdvancedCompressionParameters(
            # Where it does not divide a row: groups of half of it or a quarter, and where they do not either, int8.
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        ),
    )


def weights_and_activations(graph: Graph, calibration: Calibration, opened: Callable[[Any], Run]) -> Graph:
    """Weights and activations of convolutions and matrix products as int8 (W8A8).

    `opened` makes what NNCF gives to judge, a compiled model of OpenVINO or an ONNX graph, into a function.

    Where that is too far from float32, every layer's share is measured: the network with that layer alone put back to
    floating point. Then the worst go back, one by one, until `floor_db` is met.
    """
    nncf = _nncf()
    checks = [(dict(inputs), expected) for inputs, expected in calibration.checks]
    return nncf.quantize_with_accuracy_control(
        graph,
        nncf.Dataset([dict(inputs) for inputs in calibration.samples]),
        nncf.Dataset(checks, lambda check: check[0]),
        nearness(opened, calibration.floor_db),
        max_drop=0,
        subset_size=len(calibration.samples),
        model_type=nncf.ModelType.TRANSFORMER,  # what softmax needs stays out of it
        # Without: 1 dB further from float32 on the stickers UNet, 5 dB on its pictures, and twice as long to make.
        advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE if calibration.half_range else None,
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        ),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=len(checks), num_ranking_workers=1
        ),
    )


def nearness(
    opened: Callable[[Any], Run], floor_db: float
) -> Callable[[Any, Iterable[Any]], tuple[float, list[float]]]:
    """The judge of a quantised network: over all checks and for each, dB, at most the floor.

    So a network without a fault is no better than one that meets the floor, and no layer is put back in vain.
    """

    def judge(network: Any, checks: Iterable[Any]) -> tuple[float, list[float]]:
        run, errors, expected = opened(network), [], []
        for inputs, right in checks:
            errors.append(float(np.mean((run(inputs) - right.astype(np.float64)) ** 2)))
            expected.append(right)
        peak = max(float(right.max()) for right in expected) - min(float(right.min()) for right in expected)
        return min(psnr(float(np.mean(errors)), peak), floor_db), [min(psnr(error, peak), floor_db) for error in errors]

    return judge


def psnr(mean_squared_error: float, peak: float) -> float:
    """Peak signal-to-noise ratio, dB."""
    if mean_squared_error == 0:
        return NO_ERROR_DB
    return min(float(10 * np.log10(peak**2 / mean_squared_error)), NO_ERROR_DB)


def saturates() -> bool:
    """Whether this CPU adds products of int8 in 16 bits, where large weights overflow: x86 without VNNI."""
    import torch  # who quantises has it

    able = torch.cpu.get_capabilities()
    return platform.machine() in ("x86_64", "AMD64") and not (able["avx512_vnni"] or able["avx_vnni"])


def _nncf() -> Any:
    import nncf  # seconds of imports that only int8 needs

    nncf.set_log_level(logging.ERROR)
    return nncf
