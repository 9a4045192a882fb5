"""The training loop: schedule, resuming, averages, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from snapfusion.fit import Fit, FitConfig, fit, learning_rate

CONFIG = FitConfig(steps=30, batch=4, lr=0.05, warmup=5, decay=10, ema=0.9, precision="no", log_steps=5, save_seconds=0)


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    """accelerate keeps one precision for the whole process; other tests train in another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def loss(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return (net(x) - x.sum(dim=1, keepdim=True)).square().mean()


def test_learning_rate_rises_holds_and_falls() -> None:
    assert learning_rate(0, CONFIG) == pytest.approx(0.05 / 5)
    assert learning_rate(10, CONFIG) == pytest.approx(0.05)
    assert learning_rate(25, CONFIG) == pytest.approx(0.05 / 2)  # half way down a cosine
    assert learning_rate(30, CONFIG) == pytest.approx(0)


def test_it_learns(tmp_path: Path) -> None:
    net = model()
    before = loss(net, 1000).item()
    assert fit(net, loss, CONFIG, tmp_path).finished
    assert loss(net, 1000).item() < before / 2


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 13, 29])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, killed_at: int) -> None:
    undisturbed = model()
    fit(undisturbed, loss, CONFIG, tmp_path / "a")

    def deadly(net: nn.Module, step: int) -> torch.Tensor:
        if step == killed_at:
            raise Killed
        return loss(net, step)

    with pytest.raises(Killed):
        fit(model(), deadly, CONFIG, tmp_path / "b")
    resumed = model()
    fit(resumed, loss, CONFIG, tmp_path / "b")
    for ours, theirs in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_accumulating_equals_a_larger_batch(tmp_path: Path) -> None:
    config = FitConfig(steps=5, batch=8, lr=0.05, warmup=0, ema=0.0, precision="no")

    def halves(net: nn.Module, part: int) -> torch.Tensor:
        return loss(net, part)

    def whole(net: nn.Module, step: int) -> torch.Tensor:
        return (loss(net, 2 * step) + loss(net, 2 * step + 1)) / 2

    first, second = model(), model()
    fit(first, halves, FitConfig(**{**vars(config), "accumulate": 2}), tmp_path / "a")
    fit(second, whole, config, tmp_path / "b")
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_weights_it_leaves_are_the_average(tmp_path: Path) -> None:
    """One parameter, gradient 1, plain arithmetic: Adam moves it by lr a step, and the average trails behind."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    config = FitConfig(
        steps=3, batch=1, lr=1.0, warmup=0, weight_decay=0, ema=0.5, clip=1e9, precision="no", log_steps=1
    )
    fit(net, lambda net, step: net(torch.ones(1, 1)).sum(), config, tmp_path)
    average, weight = 0.0, 0.0
    for step in range(1, 4):
        weight -= 1.0
        decay = min(0.5, 1 - step**-0.75) if step > 1 else 0.0  # the warm-up of diffusers' EMAModel
        average = decay * average + (1 - decay) * weight
    assert net.weight.item() == pytest.approx(average, abs=1e-5)


def test_observe_sees_averages_and_may_stop(tmp_path: Path) -> None:
    seen: list[int] = []

    def observe(step: int, net: nn.Module) -> bool:
        seen.append(step)
        return step == 10

    ended = fit(model(), loss, CONFIG, tmp_path, observe, observe_steps=5)
    assert seen == [5, 10]
    assert isinstance(ended, Fit)
    assert (ended.step, ended.finished) == (10, True)


def test_a_loss_that_is_not_finite_is_an_error_and_the_last_good_state_stays(tmp_path: Path) -> None:
    def broken(net: nn.Module, step: int) -> torch.Tensor:
        return loss(net, step) * (float("nan") if step == 20 else 1)

    config = FitConfig(**{**vars(CONFIG), "save_seconds": 1e9})
    fit(model(), loss, FitConfig(**{**vars(config), "steps": 10}), tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(ValueError, match="got a loss of nan at step 25, expected a finite one"):
        fit(model(), broken, config, tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    def broken(net: nn.Module, step: int) -> torch.Tensor:
        return loss(net, step) * (float("nan") if step == 21 else 1)

    with pytest.raises(ValueError, match="at step 22"):
        fit(model(), broken, CONFIG, tmp_path)  # saves after every step
    state = load_file(tmp_path / "state.safetensors")
    assert all(value.isfinite().all() for value in state.values())


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(model(), loss, FitConfig(**{**vars(CONFIG), "steps": 1}), tmp_path)
    with pytest.raises(ValueError, match="another model"):
        fit(nn.Linear(3, 1), loss, CONFIG, tmp_path)
