"""Where few steps are best spent: found by drawing, held against flows that are known."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from snapfusion import tiny
from snapfusion.checkpoint import Checkpoint
from snapfusion.diffusion.schedule import velocity
from snapfusion.sampling import Sampling, draw_latents
from snapfusion.stages.export.shift import MANY_STEPS, SHIFTS, Search, search

SAMPLING = Sampling(steps=4, guidance=1.0)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny.checkpoint()


def test_errors_are_distances_from_many_steps(checkpoint: Checkpoint) -> None:
    prompts = ["a red fox", "a blue whale"]
    found = search(checkpoint, prompts, SAMPLING)
    assert tuple(found.errors) == SHIFTS
    many = draw_latents(checkpoint, prompts, [0, 1], replace(SAMPLING, steps=MANY_STEPS))
    shifted = replace(checkpoint, schedule=replace(checkpoint.schedule, timestep_shift=3.0))
    few = draw_latents(shifted, prompts, [0, 1], SAMPLING)
    apart = [float((few[k] - many[k]).norm() / many[k].norm()) for k in (0, 1)]
    assert found.errors[3.0] == pytest.approx(sum(apart) / 2, rel=1e-4)


@pytest.mark.parametrize(("spread", "expected"), [(20.0, (4.0, 8.0)), (0.1, (1.0, 1.0))])
def test_steps_go_where_the_flow_bends(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, spread: float, expected: tuple[float, float]
) -> None:
    """Of data N(0, spread^2) the flow is known, and bends where signal and noise are alike: far out if it is wide."""

    def predict(latents: torch.Tensor, t: int, rows: torch.Tensor) -> SimpleNamespace:
        alpha, sigma = checkpoint.schedule.level(t)
        variance = (alpha * spread) ** 2 + sigma**2  # of the latent; x and eps are its regressions
        return SimpleNamespace(sample=velocity(alpha * spread**2 * latents, sigma * latents, alpha, sigma) / variance)

    monkeypatch.setattr(checkpoint.unet, "forward", predict)
    found = search(checkpoint, ["a red fox"], SAMPLING)
    assert expected[0] <= found.nearest <= expected[1]


def test_of_equal_shifts_the_first_is_nearest() -> None:
    assert Search(4, {1.0: 0.2, 2.0: 0.1, 3.0: 0.1}).nearest == 2.0


def test_a_distilled_checkpoint_is_refused_before_anything_is_drawn(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.unet, "forward", None)
    distilled = replace(checkpoint, schedule=replace(checkpoint.schedule, distilled_steps=8))
    with pytest.raises(ValueError, match="was distilled for 8 steps with 1, expected none"):
        search(distilled, ["a red fox"], SAMPLING)
