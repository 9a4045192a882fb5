"""W8A8 stays as near to float32 as it is asked to: the layers that hurt are found and kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapfusion.runtimes import openvino
from snapfusion.runtimes.quantisation import Calibration, nearness, psnr
from snapfusion.runtimes.torch import Network


class Uneven(nn.Module):
    """Two layers: what meets `harmless` is even; a thousandth of what meets `harmed` is a thousand times the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.harmless, self.harmed = nn.Conv2d(4, 32, 1), nn.Conv2d(32, 32, 1)

    def forward(self, sample: Tensor) -> Tensor:
        hidden = self.harmless(sample).relu()
        spike = torch.zeros_like(hidden)
        spike[..., 0, 0] = 3000.0
        return self.harmed(hidden + spike)[..., 1:, 1:]


@pytest.fixture(scope="module")
def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Uneven().eval()


def export(module: nn.Module, folder: Path, floor_db: float, half_range: bool = False) -> list[str]:
    """Names of the convolutions that stay in floating point."""
    rng, right = np.random.default_rng(0), Network(module)
    drawn = [{"sample": rng.standard_normal((2, 4, 8, 8), np.float32)} for _ in range(8)]
    calibration = Calibration(drawn[:4], [(one, right(**one)) for one in drawn[4:]], floor_db, half_range)
    openvino.export(module, {"sample": torch.zeros(2, 4, 8, 8)}, "out", folder, "w8a8", calibration)
    model = openvino.CORE.read_model(folder / openvino.FILES[0])
    layers = [node for node in model.get_ops() if node.get_type_name() == "Convolution"]
    assert len(layers) == 2
    return [
        node.get_friendly_name() for node in layers if node.input_value(0).get_node().get_type_name() != "FakeQuantize"
    ]


@pytest.mark.slow
def test_the_layer_that_hurts_is_kept(module: nn.Module, tmp_path: Path) -> None:
    assert export(module, tmp_path / "any", floor_db=1.0) == []
    (kept,) = export(module, tmp_path / "near", floor_db=28.0)
    assert "harmed" in kept


@pytest.mark.slow
@pytest.mark.parametrize(("half_range", "largest"), [(False, 127), (True, 64)])
def test_weights_keep_to_half_of_the_range_where_asked(
    module: nn.Module, tmp_path: Path, half_range: bool, largest: int
) -> None:
    export(module, tmp_path, floor_db=1.0, half_range=half_range)
    model = openvino.CORE.read_model(tmp_path / openvino.FILES[0])
    weights = [node.data for node in model.get_ops() if is_constant(node) and kind_of(node) == "i8"]
    assert len(weights) == 2
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == largest  # the first is halved always


class Words(nn.Module):
    """A table of words before a layer, as a text encoder begins; one of whose widths no group of 128 divides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(1000, width), nn.Linear(width, 64)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.layer(self.table(input_ids))


@pytest.mark.parametrize(("width", "bits"), [(256, 4), (48, 8)])
def test_a_table_of_words_takes_half_of_int8_where_groups_fit(width: int, bits: int, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Words(width).eval()
    openvino.export(module, {"input_ids": torch.zeros(2, 8, dtype=torch.int64)}, "out", tmp_path, "int4-words")
    asked = {"input_ids": np.random.default_rng(0).integers(1000, size=(2, 8))}
    expected, drawn = Network(module)(**asked), openvino.open(tmp_path, batch=2)(**asked)
    off = np.linalg.norm(drawn - expected) / np.linalg.norm(expected)
    assert off < {4: 0.15, 8: 0.02}[bits]  # a sixteenth of the range is at most half a step off
    stored = [node for node in openvino.CORE.read_model(tmp_path / openvino.FILES[0]).get_ops() if is_constant(node)]
    size = {kind: sum(int(np.prod(node.shape)) for node in stored if kind in kind_of(node)) for kind in ("i4", "8")}
    rows = 1000 * width if bits == 4 else 1000 * (width + 1)  # in 8 bits a row has a zero point, too
    assert size == ({"i4": rows, "8": 64 * width} if bits == 4 else {"i4": 0, "8": rows + 64 * width})


def test_linear_layers_take_half_of_int8_and_convolutions_stay(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(4, 64, 3, padding=1), nn.Flatten(2), nn.Linear(64, 128), nn.Linear(128, 32))
    openvino.export(module.eval(), {"input": torch.zeros(2, 4, 8, 8)}, "out", tmp_path, "int4")
    asked = {"input": np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)}
    expected, drawn = Network(module)(**asked), openvino.open(tmp_path, batch=2)(**asked)
    assert 0.02 < np.linalg.norm(drawn - expected) / np.linalg.norm(expected) < 0.2
    stored = [node for node in openvino.CORE.read_model(tmp_path / openvino.FILES[0]).get_ops() if is_constant(node)]
    size = {kind: sum(int(np.prod(node.shape)) for node in stored if kind == kind_of(node)) for kind in ("i4", "i8")}
    assert size == {"i4": 64 * 128 + 128 * 32, "i8": 4 * 64 * 9}


def is_constant(node: Any) -> bool:
    return node.get_type_name() == "Constant"


def kind_of(constant: Any) -> str:
    return constant.get_element_type().get_type_name()


def test_nearness_counts_up_to_the_floor() -> None:
    right = np.array([[0.0, 10.0]], np.float32)
    checks = [({"error": np.float32(error)}, right) for error in (1.0, 0.1)]
    total, each = nearness(lambda scale: lambda inputs: right + scale * inputs["error"], 30.0)(1.0, checks)
    assert each == pytest.approx([20.0, 30.0], abs=1e-4)  # peak 10: 20 dB, and 40 dB, which is more than is asked
    assert total == pytest.approx(10 * np.log10(100 / 0.505), abs=1e-4)


def test_psnr_is_the_textbooks() -> None:
    assert psnr(1.0, peak=255) == pytest.approx(48.1308036)  # one grey level off everywhere
    assert psnr(0.0, peak=255) == 120.0
