"""ONNX Runtime computes what torch does, from a file of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from snapfusion.runtimes import onnx
from snapfusion.runtimes.quantisation import Calibration
from snapfusion.runtimes.torch import Network as TorchNetwork
from tiny_network import EXAMPLE, Tiny, inputs

ERRORS = {"fp32": 1e-5, "w8a8": 0.05}


@pytest.fixture(scope="module")
def module() -> Tiny:
    return Tiny.random()


@pytest.fixture(scope="module")
def folders(module: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    right = TorchNetwork(module)
    checks = [(inputs(rows), right(**inputs(rows))) for rows in (1, 4)]
    calibration = Calibration([inputs(rows) for rows in (2, 3)], checks, floor_db=20.0)
    folders: dict[str, Path] = {}
    for precision in ERRORS:
        folders[precision] = tmp_path_factory.mktemp(precision)
        onnx.export(module, EXAMPLE, "out", folders[precision], precision, calibration)
    return folders


@pytest.mark.parametrize(("precision", "error"), ERRORS.items())
def test_any_batch_gives_what_torch_gives(folders: dict[str, Path], module: Tiny, precision: str, error: float) -> None:
    network = onnx.open(folders[precision], batch=2)
    for rows in (2, 1, 3):
        expected = TorchNetwork(module)(**inputs(rows))
        output = network(**inputs(rows))
        assert output.shape == expected.shape == (rows, 64)
        assert output.dtype == np.float32
        assert np.linalg.norm(output - expected) < error * np.linalg.norm(expected)


def test_int8_quarters_the_weights(folders: dict[str, Path]) -> None:
    sizes = {name: (folder / "model.onnx_data").stat().st_size for name, folder in folders.items()}
    parameters = 4 * 64 * 9 + 64 * 64
    assert sizes["fp32"] >= 4 * parameters
    assert parameters <= sizes["w8a8"] < 2 * parameters


def test_the_number_of_threads_reaches_the_engine(folders: dict[str, Path]) -> None:
    network = onnx.open(folders["fp32"], batch=1, threads=1)
    assert network.session.get_session_options().intra_op_num_threads == 1


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"got a file that ONNX Runtime cannot open .*; export it again"):
        onnx.open(tmp_path, batch=1)


def test_weights_outside_of_the_folder_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """A forged file could name any path; ONNX Runtime itself refuses those that lead out."""
    data = (folders["fp32"] / "model.onnx").read_bytes()
    inside = tmp_path / "bundle"
    inside.mkdir()
    (tmp_path / "model.onnx_data").write_bytes((folders["fp32"] / "model.onnx_data").read_bytes())
    import onnx as format_of_onnx

    model = format_of_onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx_data"
    (inside / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="ONNX Runtime cannot open"):
        onnx.open(inside, batch=1)


def test_a_batch_of_one_is_no_fixed_size(folders: dict[str, Path]) -> None:
    network = onnx.open(folders["fp32"], batch=1)
    ports = {port.name: port.shape for port in network.session.get_inputs()}
    assert ports == {"sample": ["batch", 4, 8, 8], "shift": [1]}


def test_torch_computes_what_was_asked(module: Tiny) -> None:
    half = Tiny.random().to(torch.bfloat16, memory_format=torch.channels_last)
    output, expected = TorchNetwork(half)(**inputs(2)), TorchNetwork(module)(**inputs(2))
    assert output.dtype == np.float32
    assert 1e-4 < np.linalg.norm(output - expected) / np.linalg.norm(expected) < 0.02
