"""Guidance against Eq. 3 worked out by hand."""

import numpy as np
import pytest
import torch

from snapfusion.diffusion.guidance import guide, guided_steps, last_guided


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_eq_3_by_hand(make):
    cond, uncond = make([1.0, 2.0]), make([0.5, -1.0])
    assert guide(cond, uncond, 7.5).tolist() == pytest.approx([4.25, 21.5])  # 7.5 - 3.25; 15 + 6.5
    assert guide(cond, uncond, 1.0).tolist() == [1.0, 2.0]
    assert guide(cond, uncond, 0.0).tolist() == [0.5, -1.0]


def test_a_guidance_for_each_picture():
    cond, uncond = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    assert guide(cond, uncond, torch.tensor([2.0, 14.0]).reshape(2, 1, 1, 1)).flatten().tolist() == [2.0, 14.0]


def test_precision_is_kept():
    latent = np.ones((1, 4), np.float32)
    assert guide(latent, latent, 7.5).dtype == np.float32


def test_halves_of_a_step_are_guided() -> None:
    assert [guided_steps(steps, 0.5, 4.0) for steps in (1, 2, 3, 5, 7)] == [1, 1, 2, 3, 4]


def test_no_guidance_stops_at_once_and_that_below_1_never() -> None:
    assert [guided_steps(8, 0.5, guidance) for guidance in (0.0, 0.9, 1.0, 1.1)] == [8, 8, 0, 4]
    assert last_guided([999, 499], 0.5, 1.0) > 999
    assert last_guided([999, 499], 0.5, 0.0) == 499


@pytest.mark.parametrize(("stop", "guided"), [(1.0, 8), (0.9, 7), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_the_last_guided_step_is_that_of_the_share(stop: float, guided: int) -> None:
    timesteps = [999, 971, 922, 874, 799, 713, 570, 363]
    assert guided_steps(8, stop, 4.0) == guided
    last = last_guided(timesteps, stop, 4.0)
    assert [t for t in timesteps if t >= last] == timesteps[:guided]
