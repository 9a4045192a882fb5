"""From noise to a latent: DDIM, Euler and DPM-Solver++(2M), each as a generator of latents.

All latents, taken and yielded, are in the VP scale of `schedule.py`: z = alpha x + sigma eps, of about unit variance
at every step. (Euler's usual scale, VE, is z / alpha = x + (sigma / alpha) eps.)

All three make the same step: find x and eps in the latent, put them together again at the next level (Eq. 2). They
differ in the levels that they visit, and DPM-Solver++ first carries x on along its latest change. Euler's step in the
VE scale, z / alpha + (sigma' / alpha' - sigma / alpha) eps, is Eq. 2 divided by alpha': it needs no formula of its own.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from snapfusion.diffusion.array import A
from snapfusion.diffusion.schedule import Level, PredictionType, Schedule, add_noise, x_and_noise

Scheduler = Literal["ddim", "dpm++", "euler"]

# What diffusers' Euler and DPM-Solver++ take for alpha at zero terminal SNR, where log(alpha / sigma) has no value.
ALPHA_OF_NO_SIGNAL = 2.0**-12


class Step(NamedTuple):
    """One call of the network, at integer step `t` and level `now` = (alpha, sigma), leading to the level `then`."""

    t: int
    now: Level[float]
    then: Level[float]


def sample(
    predict: Callable[[A, int], A], schedule: Schedule, noise: A, steps: int, scheduler: Scheduler = "ddim"
) -> Iterator[A]:
    """Turns noise into a latent and yields the latent after each step; the last is the result.

    `predict(latent, t)` returns the network's output, already guided, in the schedule's prediction type; it is called
    once a step, with the integer step t. `noise` is standard normal, `[B, C, H, W]`; every latent has its shape and
    precision. The trajectories are those of diffusers' `DDIMScheduler`, `DPMSolverMultistepScheduler` ("dpm++": its
    order 2 and midpoint) and `EulerDiscreteScheduler` (its latents times alpha), with one exception: Euler with
    linspace spacing visits whole steps only. Raises `ValueError` for an unknown scheduler and unless 1 <= steps <= T.
    """
    path = path_of(schedule, steps, scheduler)
    if scheduler == "dpm++":
        return _dpm_solver(predict, noise, path, schedule.prediction_type)
    if scheduler == "euler" and schedule.timestep_spacing != "leading":
        # diffusers starts from x = 0, except with leading spacing, where z itself is the noise.
        _, sigma = path[0].now
        noise = sigma * noise
    return _ddim(predict, noise, path, schedule.prediction_type)


def path_of(schedule: Schedule, steps: int, scheduler: Scheduler) -> list[Step]:
    """The steps of `sample`, from noise to latent; raises `ValueError` as it does."""
    if scheduler == "ddim":
        return ddim_path(schedule, steps)
    if scheduler == "euler":
        return _solver_path(schedule, schedule.timesteps(steps))
    if scheduler == "dpm++":
        return _solver_path(schedule, _multistep_timesteps(schedule, steps))
    raise ValueError(f"got scheduler {scheduler!r}, expected ddim, dpm++ or euler; choose one of them")


def ddim_step(
    latent: A, prediction: A, now: Level[float | A], then: Level[float | A], prediction_type: PredictionType
) -> A:
    """The latent at level `then`, one deterministic DDIM step from level `now` (Eq. 2; for velocity Eq. 7)."""
    return add_noise(*x_and_noise(prediction, latent, *now, prediction_type), *then)


def _ddim(predict: Callable[[A, int], A], latent: A, path: list[Step], prediction_type: PredictionType) -> Iterator[A]:
    for t, now, then in path:
        latent = ddim_step(latent, predict(latent, t), now, then, prediction_type)
        yield latent


def _dpm_solver(
    predict: Callable[[A, int], A], latent: A, path: list[Step], prediction_type: PredictionType
) -> Iterator[A]:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, Algorithm 2); its first and last step are of first order."""
    last_x, last_h = None, math.nan
    for t, now, then in path:
        x, _ = x_and_noise(predict(latent, t), latent, *now, prediction_type)
        h = _log_snr(then) - _log_snr(now)
        lead = x if last_x is None or math.isinf(h) else x + (h / (2 * last_h)) * (x - last_x)
        alpha, sigma = now
        latent = add_noise(lead, (latent - alpha * lead) / sigma, *then)
        last_x, last_h = x, h
        yield latent


def _log_snr(level: Level[float]) -> float:
    """lambda = log(alpha / sigma), infinite where there is no noise left."""
    alpha, sigma = level
    return math.log(alpha / sigma) if sigma > 0 else math.inf


def ddim_path(schedule: Schedule, steps: int) -> list[Step]:
    """DDIM's steps: from each t to t - T // steps, as diffusers; mostly, but not always, the t of the next call.

    With a `timestep_shift`, which diffusers has not, always that.
    """
    timesteps = schedule.timesteps(steps)
    if schedule.timestep_shift != 1:
        return [Step(t, schedule.level(t), schedule.level(then)) for t, then in pairwise([*timesteps, -1])]
    stride = schedule.num_train_timesteps // steps
    return [Step(t, schedule.level(t), schedule.level(t - stride)) for t in timesteps]


def _solver_path(schedule: Schedule, timesteps: list[int]) -> list[Step]:
    """From each t to the next, and at last to no noise at all, whatever `set_alpha_to_one` says."""
    levels = [schedule.level(t) for t in timesteps]
    levels = [(alpha or ALPHA_OF_NO_SIGNAL, sigma) for alpha, sigma in levels]
    return [Step(t, now, then) for t, (now, then) in zip(timesteps, pairwise([*levels, (1.0, 0.0)]), strict=True)]


def _multistep_timesteps(schedule: Schedule, steps: int) -> list[int]:
    """diffusers' DPM-Solver++ lays out a step more than asked and leaves out the lowest, except with trailing spacing.

    With all T steps there is no step more to lay out: diffusers then divides by zero; here each step is visited.
    """
    if schedule.timestep_spacing == "trailing" or steps >= schedule.num_train_timesteps:
        return schedule.timesteps(steps)
    return schedule.timesteps(steps + 1)[:-1]
