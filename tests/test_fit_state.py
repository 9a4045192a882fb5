"""What training goes on from: killed or paused, it ends with the same weights; what is broken is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import nn

from snapfusion.fit import Share, fit
from snapfusion.fit_state import restore, save
from snapfusion.stage_folder import PausedError
from tiny_fit import CONFIG, loss, model


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    """accelerate keeps one precision for the whole process; other tests train in another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 13, 29])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, killed_at: int) -> None:
    undisturbed = model()
    fit(undisturbed, loss, CONFIG, tmp_path / "a")

    def deadly(net: nn.Module, step: int, share: Share) -> torch.Tensor:
        if step == killed_at:
            raise Killed
        return loss(net, step, share)

    with pytest.raises(Killed):
        fit(model(), deadly, CONFIG, tmp_path / "b")
    resumed = model()
    fit(resumed, loss, CONFIG, tmp_path / "b")
    for ours, theirs in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_out_of_time_pauses_and_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    undisturbed, net = model(), model()
    fit(undisturbed, loss, CONFIG, tmp_path / "a")
    with pytest.raises(PausedError, match="base paused at step 1 of 30; run the same command to go on"):
        fit(net, loss, replace(CONFIG, max_seconds=0, name="base"), tmp_path / "b")
    fit(net, loss, CONFIG, tmp_path / "b")
    for ours, theirs in zip(net.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_scale_of_half_precision_outlives_a_pause(tmp_path: Path) -> None:
    def halved(scale: float) -> tuple[Any, nn.Module, torch.optim.Optimizer, EMAModel]:
        net = model()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(1))  # makes it
        accelerator = SimpleNamespace(is_main_process=True, scaler=scaler)
        return accelerator, net, torch.optim.AdamW(net.parameters()), EMAModel(net.parameters())

    accelerator, *training = halved(8.0)
    save(accelerator, tmp_path / "state.safetensors", 7, *training)
    accelerator, *training = halved(65536.0)
    assert restore(accelerator, tmp_path / "state.safetensors", *training) == 7
    assert accelerator.scaler.get_scale() == 8.0


def test_a_loss_that_is_not_finite_is_an_error_and_the_last_good_state_stays(tmp_path: Path) -> None:
    def broken(net: nn.Module, step: int, share: Share) -> torch.Tensor:
        return loss(net, step) * (float("nan") if step == 20 else 1)

    config = replace(CONFIG, save_seconds=1e9)
    fit(model(), loss, replace(config, steps=10), tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(ValueError, match="got a loss of nan at step 25, expected a finite one"):
        fit(model(), broken, config, tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    def broken(net: nn.Module, step: int, share: Share) -> torch.Tensor:
        return loss(net, step) * (float("nan") if step == 21 else 1)

    with pytest.raises(ValueError, match="at step 22"):
        fit(model(), broken, CONFIG, tmp_path)  # saves after every step
    state = load_file(tmp_path / "state.safetensors")
    assert all(value.isfinite().all() for value in state.values())


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(model(), loss, replace(CONFIG, steps=1), tmp_path)
    with pytest.raises(ValueError, match="another model"):
        fit(nn.Linear(3, 1), loss, CONFIG, tmp_path)


def test_a_corrupt_state_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"not a state")
    with pytest.raises(ValueError, match=r"state\.safetensors: expected a whole safetensors file .* run again"):
        fit(model(), loss, CONFIG, tmp_path)
