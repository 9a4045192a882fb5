"""OpenVINO computes what torch does, from a file of its own, and leaves nothing else behind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapfusion.runtimes import openvino
from snapfusion.runtimes.torch import Network as TorchNetwork


class Tiny(nn.Module):
    """A convolution and a matrix, wide enough that int8 counts; `shift` has one value for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 64, 3, padding=1)
        self.linear = nn.Linear(64, 64)

    def forward(self, sample: Tensor, shift: Tensor) -> Tensor:
        return self.linear(self.conv(sample).mean((2, 3))) + shift


@pytest.fixture(scope="module")
def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny().eval()


@pytest.fixture(scope="module")
def folders(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    example = {"sample": torch.zeros(2, 4, 8, 8), "shift": torch.tensor([1])}
    folders: dict[str, Path] = {}
    for weights in ("fp16", "int8"):
        folders[weights] = tmp_path_factory.mktemp(weights)
        shapes = openvino.export(module, example, "out", folders[weights], weights)
        assert shapes == {"sample": [-1, 4, 8, 8], "shift": [1]}
    return folders


def inputs(rows: int) -> dict[str, Any]:
    sample = np.random.default_rng(rows).standard_normal((rows, 4, 8, 8), np.float32)
    return {"sample": sample, "shift": np.array([3])}


@pytest.mark.parametrize(("weights", "error"), [("fp16", 0.01), ("int8", 0.02)])
def test_any_batch_gives_what_torch_gives(
    folders: dict[str, Path], module: nn.Module, weights: str, error: float
) -> None:
    network = openvino.open(folders[weights], batch=2)
    for rows in (2, 1, 3, 2):
        expected = TorchNetwork(module)(**inputs(rows))
        assert expected.shape == (rows, 64)
        difference = network(**inputs(rows)) - expected
        assert np.linalg.norm(difference) < error * np.linalg.norm(expected)


def test_an_output_is_not_written_over_by_the_next_call(folders: dict[str, Path]) -> None:
    network = openvino.open(folders["fp16"], batch=1)
    first = network(**inputs(1))
    kept = first.copy()
    network(sample=-inputs(1)["sample"], shift=np.array([0]))
    assert np.array_equal(first, kept)


def test_int8_halves_the_weights(folders: dict[str, Path]) -> None:
    sizes = {weights: (folder / "openvino_model.bin").stat().st_size for weights, folder in folders.items()}
    parameters = 4 * 64 * 9 + 64 * 64
    assert sizes["fp16"] >= 2 * parameters
    assert sizes["int8"] < 2 * parameters
    assert sizes["int8"] >= parameters


def test_opening_leaves_no_files(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    openvino.open(folders["fp16"], batch=1)(**inputs(1))
    assert list(tmp_path.iterdir()) == []
    assert sorted(file.name for file in folders["fp16"].iterdir()) == ["openvino_model.bin", "openvino_model.xml"]


@pytest.mark.parametrize(("listed", "expected"), [(["FP32", "BF16", "INT8"], "bf16"), (["FP32", "INT8"], "f32")])
def test_bfloat16_is_used_only_where_the_cpu_lists_it(
    monkeypatch: pytest.MonkeyPatch, listed: list[str], expected: str
) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return listed

    monkeypatch.setattr(openvino, "CORE", Core())
    assert openvino.precision() == expected


def test_the_number_of_threads_reaches_the_engine(folders: dict[str, Path]) -> None:
    (request,) = openvino.open(folders["fp16"], batch=1, threads=1).requests.values()
    assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_a_file_that_cannot_be_written_is_an_os_error(module: nn.Module, tmp_path: Path) -> None:
    (tmp_path / openvino.FILES[1]).mkdir()
    example = {"sample": torch.zeros(2, 4, 8, 8), "shift": torch.tensor([1])}
    with pytest.raises(OSError, match="cannot write a network, perhaps the disk is full"):
        openvino.export(module, example, "out", tmp_path)
