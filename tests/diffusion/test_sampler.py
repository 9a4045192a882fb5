"""Whole trajectories against diffusers' schedulers, and solutions known in closed form."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from snapfusion.diffusion.sampler import ddim_step, sample
from snapfusion.diffusion.schedule import Schedule, velocity

NOISE = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
STEPS = [1, 2, 8, 30, 50]
SAMPLERS = ["ddim", "dpm++", "euler"]
SPACINGS = ["trailing", "leading", "linspace"]
SD15 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SCHEDULES = {
    "sd15": SD15,
    "linear": {"beta_schedule": "linear"},
    "sd15-v": SD15 | {"prediction_type": "v_prediction"},
    "linear-v": {"beta_schedule": "linear", "prediction_type": "v_prediction"},
    "cosine-v": COSINE | {"prediction_type": "v_prediction"},
    "sd15-v-zero-snr": SD15 | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "cosine-v-zero-snr": COSINE | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
}
every_schedule = pytest.mark.parametrize("fields", SCHEDULES.values(), ids=SCHEDULES)
every_spacing = pytest.mark.parametrize("spacing", SPACINGS)
every_offset = pytest.mark.parametrize("offset", [0, 1])


def predict(latent, t):
    """A smooth, nonlinear network of latent and t, the same for NumPy and torch."""
    return latent / (1 + latent * latent) - t / 2000


def diffusers_trajectory(scheduler):
    """The loop of diffusers' pipelines."""
    latent = torch.from_numpy(NOISE) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = predict(scheduler.scale_model_input(latent, t), t.item())
        latent = scheduler.step(prediction, t, latent).prev_sample
        yield latent.numpy()


def assert_same_trajectory(ours, theirs, fields):
    """To 1e-5 of the latent, or as well as diffusers' float32 table knows the cosine schedule's first sigma, 0.006."""
    coarse = 3e-5 if fields == fields | SCHEDULES["cosine-v-zero-snr"] else 0
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=max(1e-5 * np.abs(their).max(), coarse))


@every_schedule
@every_spacing
@every_offset
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_is_that_of_diffusers(fields, spacing, offset, to_one):
    fields = fields | {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": to_one}
    for steps in STEPS:
        scheduler = DDIMScheduler(clip_sample=False, **fields)
        scheduler.set_timesteps(steps)
        ours = sample(predict, Schedule(**fields), NOISE, steps)
        assert_same_trajectory(ours, diffusers_trajectory(scheduler), fields)


@every_schedule
@every_spacing
@every_offset
def test_dpm_solver_is_that_of_diffusers(fields, spacing, offset):
    fields = fields | {"timestep_spacing": spacing, "steps_offset": offset}
    for steps in STEPS:
        scheduler = DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", **fields
        )
        scheduler.set_timesteps(steps)
        ours = sample(predict, Schedule(**fields), NOISE, steps, "dpm++")
        assert_same_trajectory(ours, diffusers_trajectory(scheduler), fields)


@every_schedule
@every_spacing
@every_offset
def test_euler_is_that_of_diffusers_in_the_vp_scale(fields, spacing, offset, monkeypatch):
    fields = fields | {"timestep_spacing": spacing, "steps_offset": offset}
    schedule = Schedule(**fields)
    for steps in STEPS:
        scheduler = EulerDiscreteScheduler(**fields)
        if spacing == "linspace":  # diffusers' Euler would make steps like 856.29: it is handed the whole ones
            scheduler.set_timesteps(timesteps=schedule.timesteps(steps))
        else:
            scheduler.set_timesteps(steps)
        # Near zero terminal SNR, VE latents are in the thousands, and diffusers' float32 loses 1e-3 in each step.
        scheduler.sigmas = scheduler.sigmas.double()
        with monkeypatch.context() as double_precision:
            double_precision.setattr(torch, "float32", torch.float64)  # what `step` rounds latents to
            theirs = list(diffusers_trajectory(scheduler))
        alphas = 1 / (scheduler.sigmas.numpy()[1:] ** 2 + 1) ** 0.5  # VE: sigma / alpha
        scaled = [alpha * latent for alpha, latent in zip(alphas, theirs, strict=True)]
        assert_same_trajectory(sample(predict, schedule, NOISE, steps, "euler"), scaled, fields)


@pytest.mark.parametrize("name", ["sd15", "linear-v", "cosine-v"])
@pytest.mark.parametrize("shift", [0.5, 3.0])
@pytest.mark.parametrize(("sampler", "order"), [("dpm++", 2), ("ddim", 1)])
def test_shifted_steps_are_those_of_diffusers_where_it_is_handed_them(name, shift, sampler, order):
    """diffusers' DDIM takes no steps from outside; DPM-Solver++ of first order is DDIM, and does."""
    schedule = Schedule(**SCHEDULES[name], timestep_spacing="trailing", timestep_shift=shift)
    for steps in STEPS:
        scheduler = DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++", solver_order=order, solver_type="midpoint", **SCHEDULES[name]
        )
        scheduler.set_timesteps(timesteps=schedule.timesteps(steps))
        ours = sample(predict, schedule, NOISE, steps, sampler)
        assert_same_trajectory(ours, diffusers_trajectory(scheduler), SCHEDULES[name])


@pytest.mark.parametrize("steps", [2, 4, 10])
def test_euler_with_linspace_is_that_of_diffusers_where_its_steps_are_whole(steps):
    fields = SD15 | {"timestep_spacing": "linspace"}
    scheduler = EulerDiscreteScheduler(**fields)
    scheduler.set_timesteps(steps)
    *_, theirs = diffusers_trajectory(scheduler)
    *_, ours = sample(predict, Schedule(**fields), NOISE, steps, "euler")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["sd15", "cosine-v-zero-snr"])
def test_numpy_equals_torch_in_single_precision(sampler, name):
    schedule = Schedule(**SCHEDULES[name], timestep_spacing="trailing")
    noise = NOISE.astype(np.float32)
    arrays = list(sample(predict, schedule, noise, 8, sampler))
    tensors = list(sample(predict, schedule, torch.from_numpy(noise), 8, sampler))
    assert len(arrays) == len(tensors) == 8
    for array, tensor in zip(arrays, tensors, strict=True):
        assert (array.dtype, tensor.dtype) == (np.float32, torch.float32)
        np.testing.assert_allclose(array, tensor.numpy(), rtol=0, atol=1e-6 * np.abs(array).max())


@pytest.mark.parametrize("sampler", SAMPLERS)
@every_spacing
@every_offset
@pytest.mark.parametrize("name", ["sd15", "cosine-v-zero-snr"])
def test_any_number_of_steps_stays_finite(sampler, spacing, offset, name):
    assert_finite(sampler, Schedule(**SCHEDULES[name], timestep_spacing=spacing, steps_offset=offset))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["sd15", "cosine-v-zero-snr"])
def test_any_number_of_shifted_steps_stays_finite(sampler, name):
    assert_finite(sampler, Schedule(**SCHEDULES[name], timestep_spacing="trailing", timestep_shift=3.0))


def assert_finite(sampler, schedule):
    noise = NOISE.astype(np.float32)
    for steps in [1, 2, 3, 7, 48, 61, 499, 501, 999, 1000]:  # 61: diffusers adds a step -1
        called: list[int] = []

        def watched(latent, t, called=called):
            called.append(t)
            return predict(latent, t)

        latents = list(sample(watched, schedule, noise, steps, sampler))
        assert len(latents) == len(called) == steps
        assert all(type(t) is int and 0 <= t < 1000 for t in called)
        assert all(np.isfinite(latent).all() for latent in latents)


@pytest.mark.parametrize("sampler", SAMPLERS)
@every_schedule
def test_a_network_that_knows_the_picture_draws_it(sampler, fields):
    """Where all data is one picture, every step of every sampler points at it, and the last arrives."""
    schedule = Schedule(**fields, timestep_spacing="trailing")
    picture = np.linspace(-2, 2, NOISE.size).reshape(NOISE.shape)

    def knowing(latent, t):
        alpha, sigma = schedule.level(t)
        noise = (latent - alpha * picture) / sigma
        return noise if schedule.prediction_type == "epsilon" else velocity(picture, noise, alpha, sigma)

    for steps in [1, 8]:
        *_, latent = sample(knowing, schedule, NOISE, steps, sampler)
        np.testing.assert_allclose(latent, picture, atol=1e-3)


def gaussian_error(sampler, steps, shift=1.0):
    """How far a sampler ends from the truth for data N(0, 1/4), whose flow from noise ends at noise / 2."""
    schedule = Schedule(**SCHEDULES["cosine-v-zero-snr"], timestep_spacing="trailing", timestep_shift=shift)

    def velocity_of_gaussian(latent, t):
        alpha, sigma = schedule.level(t)
        variance = alpha**2 / 4 + sigma**2  # of the latent; x and eps are its regressions
        return velocity(alpha / 4 * latent, sigma * latent, alpha, sigma) / variance

    *_, latent = sample(velocity_of_gaussian, schedule, NOISE, steps, sampler)
    return np.abs(latent - NOISE / 2).max()


def test_gaussian_data_has_the_known_flow():
    coarse, fine, all_steps = (gaussian_error("ddim", steps) for steps in [10, 100, 1000])
    assert fine == pytest.approx(coarse / 10, rel=0.5)  # first order
    assert all_steps < 0.01
    assert gaussian_error("euler", 100) == pytest.approx(fine, rel=1e-2)
    assert gaussian_error("dpm++", 100) < fine / 3
    assert gaussian_error("ddim", 100, shift=2.0) == pytest.approx(gaussian_error("ddim", 10, shift=2.0) / 10, rel=0.5)


def test_two_ddim_steps_by_hand():
    # Eq. 7 at levels (0.6, 0.8) -> (0.8, 0.6) -> (1, 0), z = 1, v = 0.5 at both.
    # x = 0.6 - 0.4 = 0.2, eps = 0.8 + 0.3 = 1.1, z' = 0.16 + 0.66 = 0.82; then z'' = x = 0.656 - 0.3 = 0.356.
    v = np.array([0.5])
    halfway = ddim_step(np.array([1.0]), v, (0.6, 0.8), (0.8, 0.6), "v_prediction")
    assert halfway.item() == pytest.approx(0.82)
    assert ddim_step(halfway, v, (0.8, 0.6), (1.0, 0.0), "v_prediction").item() == pytest.approx(0.356)


@pytest.mark.parametrize(
    ("steps", "scheduler", "message"),
    [(0, "ddim", "got 0 steps"), (1001, "dpm++", "got 1001 steps"), (8, "heun", "got scheduler 'heun', expected ddim")],
)
def test_a_mistake_is_reported_before_the_first_step(steps, scheduler, message):
    with pytest.raises(ValueError, match=message):
        sample(predict, Schedule(), NOISE, steps, scheduler)
