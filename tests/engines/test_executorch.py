"""ExecuTorch computes what torch does, from a file of its own; and draws a bundle's pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from snapfusion.runtimes import executorch
from snapfusion.runtimes.quantisation import Calibration
from snapfusion.runtimes.torch import Network as TorchNetwork
from snapfusion.stages.export import stage
from tiny_network import inputs


class Tiny(torch.nn.Module):
    """A convolution and a matrix, with arguments called as a UNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = torch.nn.Conv2d(4, 64, 3, padding=1), torch.nn.Linear(64, 64)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(sample).relu().mean((2, 3))) + timestep


@pytest.fixture(scope="module")
def module() -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny().eval()


def values(rows: int) -> dict[str, np.ndarray]:
    return {"sample": inputs(rows)["sample"], "timestep": np.array([3])}


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("w8a8", 0.05)])
def test_any_batch_gives_what_torch_gives(module: Tiny, tmp_path: Path, precision: str, error: float) -> None:
    right = TorchNetwork(module)
    calibration = Calibration([values(4)], [(values(1), right(**values(1)))], floor_db=20.0)
    example = {"sample": torch.zeros(2, 4, 8, 8), "timestep": torch.tensor([1])}
    executorch.export(module, example, "out", tmp_path, precision, calibration)  # pyright: ignore[reportArgumentType]
    network = executorch.open(tmp_path, batch=2)
    for rows in (2, 1, 3):
        expected, output = right(**values(rows)), network(**values(rows))
        assert output.shape == expected.shape == (rows, 64)
        assert np.linalg.norm(output - expected) < error * np.linalg.norm(expected)


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(b"no program")
    with pytest.raises(ValueError, match=r"got a file that ExecuTorch cannot open .*; export it again"):
        executorch.open(tmp_path, batch=1)


def test_a_bundle_draws_as_torch_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The stage itself refuses what is further from torch than its floors."""
    config = stage.Config(runtime=("executorch",), steps=2, guidance=2.0, prompts=("a red fox",))
    result = stage.run(config, tiny_checkpoint, tmp_path / "bundle")
    parity = result.figures["parity"]["executorch"]
    assert all(parity[part]["psnr_db"] > 80 for part in ("text_encoder", "unet", "vae_decoder"))
    assert parity["pictures"]["median_psnr_db"] > 45
