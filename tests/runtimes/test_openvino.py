"""OpenVINO computes what torch does, from a file of its own, and leaves nothing else behind."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from snapfusion.runtimes import openvino
from snapfusion.runtimes.quantisation import Calibration
from snapfusion.runtimes.torch import Network as TorchNetwork
from tiny_network import EXAMPLE, Tiny, inputs


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return Tiny.random()


@pytest.fixture(scope="module")
def folders(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    right = TorchNetwork(module)
    checks = [(inputs(rows), right(**inputs(rows))) for rows in (1, 4)]
    calibration = Calibration([inputs(rows) for rows in (2, 3)], checks, floor_db=20.0)
    folders: dict[str, Path] = {}
    for weights in ("fp16", "int8", "w8a8"):
        folders[weights] = tmp_path_factory.mktemp(weights)
        shapes = openvino.export(module, EXAMPLE, "out", folders[weights], weights, calibration)
        assert shapes == {"sample": [-1, 4, 8, 8], "shift": [1]}
    return folders


@pytest.mark.parametrize(("weights", "error"), [("fp16", 0.01), ("int8", 0.02), ("w8a8", 0.05)])
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
    assert parameters <= sizes["w8a8"] < 2 * parameters


@pytest.mark.parametrize(("weights", "rounded"), [("int8", False), ("w8a8", True)])
def test_w8a8_alone_rounds_what_meets_the_weights(folders: dict[str, Path], weights: str, rounded: bool) -> None:
    model = openvino.CORE.read_model(folders[weights] / "openvino_model.xml")
    assert any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()) is rounded


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


def test_it_is_made_ready_for_other_numbers_of_rows_at_once(folders: dict[str, Path]) -> None:
    network = openvino.open(folders["fp16"], 2, None, (1,))
    assert sorted(network.requests) == [1, 2]
    alone = openvino.open(folders["fp16"], 1)
    assert np.array_equal(network(**inputs(1)), alone(**inputs(1)))


def test_the_number_of_threads_reaches_the_engine(folders: dict[str, Path]) -> None:
    (request,) = openvino.open(folders["fp16"], batch=1, threads=1).requests.values()
    assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_a_file_that_cannot_be_written_is_an_os_error(module: nn.Module, tmp_path: Path) -> None:
    (tmp_path / openvino.FILES[1]).mkdir()
    with pytest.raises(OSError, match="cannot write a network, perhaps the disk is full"):
        openvino.export(module, EXAMPLE, "out", tmp_path)
