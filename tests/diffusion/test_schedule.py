"""Noise levels, steps and conversions against diffusers' DDIMScheduler and values worked out by hand."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfusion.diffusion.schedule import Schedule, add_noise, velocity, x_and_noise

SD15 = {  # scheduler/scheduler_config.json of Stable Diffusion v1.5, as published
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
ZERO_SNR = Schedule(
    beta_schedule="squaredcos_cap_v2",
    rescale_betas_zero_snr=True,
    prediction_type="v_prediction",
    timestep_spacing="trailing",
)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("steps", "start", "end"), [(1000, 0.0001, 0.02), (1000, 0.00085, 0.012), (50, 0.001, 0.3)])
def test_levels_are_those_of_diffusers(kind, rescale, steps, start, end):
    fields = {
        "num_train_timesteps": steps,
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": kind,
        "rescale_betas_zero_snr": rescale,
        "prediction_type": "v_prediction",
    }
    expected = DDIMScheduler(**fields).alphas_cumprod.double().numpy()
    schedule = Schedule(**fields)
    # diffusers' table is float32; where it rescales, its rounding adds up, and differs from one torch to the next.
    absolute, relative = (1e-6, 1e-4) if rescale else (2e-7, 1e-6)
    np.testing.assert_allclose(schedule.alphas**2, expected, rtol=0, atol=absolute)
    np.testing.assert_allclose(schedule.alphas, np.sqrt(expected), rtol=relative)
    assert (schedule.alphas[-1] == 0) == rescale
    np.testing.assert_allclose(schedule.alphas**2 + schedule.sigmas**2, 1, rtol=1e-12)


def test_stable_diffusion_levels_by_hand():
    # beta_0 = 0.00085, beta_999 = 0.012; the product of all 1 - beta is Stable Diffusion's known 0.0047.
    schedule = Schedule.from_config(SD15)
    assert schedule.alphas[0] == pytest.approx((1 - 0.00085) ** 0.5, abs=1e-7)
    assert schedule.sigmas[0] == pytest.approx(0.00085**0.5, rel=1e-4)
    assert schedule.alphas[-1] ** 2 == pytest.approx(0.0046602, rel=1e-4)
    assert schedule.alphas.dtype == schedule.sigmas.dtype == np.float64
    assert schedule.alphas.shape == schedule.sigmas.shape == (1000,)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps_are_those_of_diffusers_at_every_count(spacing, offset):
    schedule = Schedule(timestep_spacing=spacing, steps_offset=offset)
    theirs = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    for steps in range(1, 1001):
        theirs.set_timesteps(steps)
        ours = schedule.timesteps(steps)
        assert len(ours) == len(set(ours)) == steps
        assert ours == sorted(ours, reverse=True)
        assert ours[0] <= 999
        assert ours[-1] >= 0
        if (spacing, offset, steps) != ("leading", 1, 1000):  # where diffusers visits a step 1000 that is not there
            # With trailing spacing and some counts diffusers adds a step -1 at the end.
            assert ours == theirs.timesteps.tolist()[:steps]


def test_the_papers_grid_is_trailing():
    schedule = Schedule(timestep_spacing="trailing")
    assert schedule.timesteps(8) == [999, 874, 749, 624, 499, 374, 249, 124]  # 1000 i/8 - 1
    assert schedule.timesteps(1) == [999]


def test_a_shift_moves_steps_towards_the_noise():
    schedule = Schedule(timestep_spacing="trailing", timestep_shift=3.0)
    assert schedule.timesteps(4) == [999, 899, 749, 499]  # 3u / (1 + 2u) of 1, 3/4, 1/2, 1/4
    assert schedule.timesteps(8)[::2] == schedule.timesteps(4)
    assert replace(schedule, timestep_shift=1 / 3).timesteps(4) == [999, 499, 249, 99]  # u / (3 - 2u)
    assert replace(schedule, timestep_shift=1.0) == Schedule(timestep_spacing="trailing")


@pytest.mark.parametrize("shift", [0.01, 0.3, 3.0, 100.0])
def test_shifted_steps_are_distinct_at_every_count(shift):
    schedule = Schedule(timestep_spacing="trailing", timestep_shift=shift)
    for steps in range(1, 1001):
        grid = schedule.timesteps(steps)
        assert grid[0] == 999
        assert grid[-1] >= 0
        assert len(grid) == steps
        assert all(before > after for before, after in pairwise(grid))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timestep_shift": 0.0}, "got timestep_shift 0.0, expected a number above 0"),
        ({"timestep_shift": float("nan")}, "got timestep_shift nan"),
        ({"timestep_shift": 101.0}, "at most 100"),
        ({"timestep_shift": "3"}, "got timestep_shift '3', expected a value like 1.0"),
        ({"timestep_shift": 3.0, "timestep_spacing": "leading"}, "got timestep_spacing 'leading', expected trailing"),
    ],
)
def test_a_shift_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"timestep_spacing": "trailing", **fields})


def test_an_offset_never_leaves_the_schedule():
    assert Schedule(steps_offset=1).timesteps(1000) == list(range(999, -1, -1))


def test_the_end_is_clean_or_step_zero():
    assert Schedule(set_alpha_to_one=True).level(-1) == (1.0, 0.0)
    kept = Schedule(set_alpha_to_one=False)
    assert kept.level(-1) == kept.level(0) == (kept.alphas[0], kept.sigmas[0])
    assert [type(number) for number in kept.level(5)] == [float, float]


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_conversions_by_hand(make):
    x, noise, alpha, sigma = make([1.0, -1.0]), make([2.0, 0.5]), 0.6, 0.8
    latent, v = add_noise(x, noise, alpha, sigma), velocity(x, noise, alpha, sigma)
    np.testing.assert_allclose(latent, [2.2, -0.2], rtol=1e-6)  # 0.6 + 1.6; -0.6 + 0.4
    np.testing.assert_allclose(v, [0.4, 1.1], rtol=1e-6)  # 1.2 - 0.8; 0.3 + 0.8
    for prediction, prediction_type in [(v, "v_prediction"), (noise, "epsilon")]:
        found = x_and_noise(prediction, latent, alpha, sigma, prediction_type)
        np.testing.assert_allclose(found[0], [1.0, -1.0], rtol=1e-6)
        np.testing.assert_allclose(found[1], [2.0, 0.5], rtol=1e-6)


@settings(deadline=None)
@given(
    t=st.integers(0, 998), x=st.floats(-4, 4), noise=st.floats(-4, 4), kind=st.sampled_from(["v_prediction", "epsilon"])
)
def test_a_perfect_prediction_gives_back_x_and_noise(t, x, noise, kind):
    alpha, sigma = ZERO_SNR.level(t)
    clean, eps = np.array([x]), np.array([noise])
    prediction = eps if kind == "epsilon" else velocity(clean, eps, alpha, sigma)
    found = x_and_noise(prediction, add_noise(clean, eps, alpha, sigma), alpha, sigma, kind)
    np.testing.assert_allclose(found, (clean, eps), atol=1e-10)


def test_levels_broadcast_over_a_batch():
    x, noise = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), 2.0)
    alpha, sigma = (torch.tensor(pair).reshape(2, 1, 1, 1) for pair in ([0.6, 1.0], [0.8, 0.0]))
    assert add_noise(x, noise, alpha, sigma).flatten().tolist() == pytest.approx([2.2, 1.0])
    assert velocity(x, noise, alpha, sigma).flatten().tolist() == pytest.approx([0.4, 2.0])


def test_config_round_trip_through_diffusers():
    theirs = DDIMScheduler.from_config(ZERO_SNR.to_config())
    assert Schedule.from_config(theirs.config) == ZERO_SNR
    assert not theirs.config.clip_sample
    assert theirs.alphas_cumprod[-1] == 0


def test_the_steps_a_checkpoint_was_distilled_for_are_written_and_diffusers_draws_the_same():
    distilled = replace(ZERO_SNR, distilled_steps=8)
    config = distilled.to_config()
    assert config["distilled_steps"] == 8
    assert Schedule.from_config(config) == distilled
    assert "distilled_steps" not in ZERO_SNR.to_config()
    theirs, plain = DDIMScheduler.from_config(config), DDIMScheduler.from_config(ZERO_SNR.to_config())
    assert torch.equal(theirs.alphas_cumprod, plain.alphas_cumprod)


def test_a_shift_is_written_and_read():
    moved = replace(ZERO_SNR, timestep_shift=2.5)
    assert moved.to_config()["timestep_shift"] == 2.5
    assert Schedule.from_config(moved.to_config()) == moved
    assert "timestep_shift" not in ZERO_SNR.to_config()


def test_stable_diffusions_config_is_read():
    schedule = Schedule.from_config(SD15)
    theirs = DDIMScheduler.from_config(SD15)
    assert schedule == Schedule(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False
    )
    theirs.set_timesteps(50)
    assert schedule.timesteps(50) == theirs.timesteps.tolist()
    assert schedule.timesteps(50)[0] == 981


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "got prediction_type 'epsilon', expected v_prediction"),
        ({"prediction_type": "sample"}, "got prediction_type 'sample', expected one of epsilon, v_prediction"),
        ({"beta_schedule": "sigmoid"}, "got beta_schedule 'sigmoid', expected one of linear"),
        ({"timestep_spacing": "log"}, "got timestep_spacing 'log'"),
        ({"num_train_timesteps": "1000"}, "got num_train_timesteps '1000'"),
        ({"num_train_timesteps": 1}, "got num_train_timesteps 1"),
        ({"beta_end": 1.0}, "got beta_start, beta_end"),
        ({"beta_start": float("nan")}, "got beta_start, beta_end"),
        ({"steps_offset": 1000}, "got steps_offset 1000"),
        ({"steps_offset": -1}, "got steps_offset -1"),
        ({"set_alpha_to_one": None}, "got set_alpha_to_one None"),
        ({"distilled_steps": 1001}, "got distilled_steps 1001"),
        ({"distilled_steps": "8"}, "got distilled_steps '8'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"thresholding": True}, "thresholding"),
        ({"clip_sample": True}, "clip_sample"),
    ],
)
def test_what_cannot_be_read_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Schedule.from_config(SD15 | change)


def test_another_kind_of_scheduler_is_refused():
    with pytest.raises(ValueError, match=r"without beta_schedule .*FlowMatchEulerDiscreteScheduler"):
        Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000})


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"got {steps} steps, expected 1..1000"):
        Schedule().timesteps(steps)


def test_placed_steps_are_trailing() -> None:
    schedule = Schedule(timestep_spacing="leading", steps_offset=1)
    assert schedule.placed(2.0) == replace(schedule, timestep_spacing="trailing", timestep_shift=2.0)
    with pytest.raises(ValueError, match="got timestep_shift 0"):
        schedule.placed(0.0)


def test_a_distilled_checkpoint_keeps_its_steps() -> None:
    distilled = Schedule(timestep_spacing="trailing", distilled_steps=8, timestep_shift=2.0)
    assert distilled.placed(2.0) == distilled
    with pytest.raises(ValueError, match="was distilled for 8 steps with 2, expected none: it knows no others"):
        distilled.placed(3.0)
