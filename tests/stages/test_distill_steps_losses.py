"""Eq. 7-11, worked out again in float64 by another route, and by hand."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from snapfusion.diffusion.guidance import guide
from snapfusion.diffusion.sampler import ddim_step, sample
from snapfusion.diffusion.schedule import Schedule, velocity
from snapfusion.stages.distill_steps.grid import Leap, leaps
from snapfusion.stages.distill_steps.losses import (
    cfg_aware_loss,
    dynamic_gamma,
    mixed_loss,
    original_loss,
    snr_weight,
    two_step_target,
    vanilla_loss,
)

STICKERS = Schedule(
    beta_schedule="squaredcos_cap_v2",
    rescale_betas_zero_snr=True,
    prediction_type="v_prediction",
    timestep_spacing="trailing",
)
STABLE_DIFFUSION = Schedule(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    set_alpha_to_one=False,
    prediction_type="v_prediction",
    timestep_spacing="trailing",
)
SHIFTED = replace(STICKERS, timestep_shift=3.0)
every_schedule = pytest.mark.parametrize(
    "schedule", [STICKERS, STABLE_DIFFUSION, SHIFTED], ids=["stickers", "sd", "shifted"]
)
every_count = pytest.mark.parametrize("steps", [1, 4, 8, 16, 32])


def predict(latent: Tensor, t: Tensor) -> Tensor:
    """A smooth, nonlinear teacher."""
    return latent / (1 + latent * latent) - t.reshape(-1, 1, 1, 1) / 2000


def latents(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angle(level: tuple[Tensor, Tensor]) -> Tensor:
    """phi of alpha = cos phi, sigma = sin phi."""
    alpha, sigma = level
    return torch.atan2(sigma.double(), alpha.double())


def turn(latent: Tensor, v: Tensor, delta: Tensor) -> Tensor:
    """DDIM in angles (arXiv 2202.00512, appendix D): z at phi - delta is cos(delta) z - sin(delta) v."""
    return delta.cos() * latent - delta.sin() * v


def exact(leap: Leap) -> Leap:
    """The same in float64, alpha^2 + sigma^2 = 1 to its last digits."""
    now, middle, then = ((angle(level).cos(), angle(level).sin()) for level in (leap.now, leap.middle, leap.then))
    return Leap(leap.t, leap.t_middle, now, middle, then)


@every_schedule
@every_count
def test_the_target_is_where_two_turns_by_angles_end(schedule: Schedule, steps: int) -> None:
    leap, latent = exact(leaps(schedule, steps)), latents(steps)
    start, between, end = angle(leap.now), angle(leap.middle), angle(leap.then)
    halfway = turn(latent, predict(latent, leap.t), start - between)
    arrival = turn(halfway, predict(halfway, leap.t_middle), between - end)
    student = ((start - end).cos() * latent - arrival) / (start - end).sin()  # the v of one turn that ends there
    expected = start.cos() * latent - start.sin() * student
    torch.testing.assert_close(two_step_target(predict, latent, leap), expected, rtol=1e-9, atol=1e-9)


@every_schedule
@every_count
def test_a_student_that_does_both_steps_in_one_has_no_loss_and_ends_there(schedule: Schedule, steps: int) -> None:
    leap, latent = exact(leaps(schedule, steps)), latents(steps)
    target = two_step_target(predict, latent, leap)
    alpha, sigma = leap.now
    student = velocity(target, (latent - alpha * target) / sigma, alpha, sigma)
    assert vanilla_loss(student, latent, target, leap.now).item() < 1e-18
    assert vanilla_loss(student + 0.1, latent, target, leap.now).item() > 1e-3
    halfway = ddim_step(latent, predict(latent, leap.t), leap.now, leap.middle, "v_prediction")
    arrival = ddim_step(halfway, predict(halfway, leap.t_middle), leap.middle, leap.then, "v_prediction")
    torch.testing.assert_close(ddim_step(latent, student, leap.now, leap.then, "v_prediction"), arrival)


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 32, 64])
def test_the_grid_is_the_samplers(schedule: Schedule, steps: int) -> None:
    visited, path = [], [noise := latents(1)]
    leap = leaps(schedule, steps)

    def network(latent: Tensor, t: int) -> Tensor:
        visited.append(t)
        return predict(latent, torch.tensor(t))

    path += sample(network, schedule, noise, steps)
    assert visited == leap.t.tolist()
    for row, (before, after) in enumerate(pairwise(path)):
        one = leap.pick(slice(row, row + 1))
        stepped = ddim_step(before, predict(before, one.t), one.now, one.then, "v_prediction")
        torch.testing.assert_close(stepped, after, rtol=0, atol=1e-6)
    between = [t for t in schedule.timesteps(2 * steps) if t not in visited]
    assert leap.t_middle.tolist() == between


def test_the_grid_of_eight_steps_by_hand() -> None:
    leap = leaps(STICKERS, 8)
    assert leap.t.tolist() == [999, 874, 749, 624, 499, 374, 249, 124]  # 1000 i/8 - 1
    assert leap.t_middle.tolist() == [937, 811, 687, 561, 437, 311, 187, 61]  # 1000 (i/8 - 1/16) - 1, ties to even
    assert (leap.now[0][0].item(), leap.now[1][0].item()) == (0, 1)
    assert (leap.then[0][-1].item(), leap.then[1][-1].item()) == (1, 0)


def test_a_grid_that_is_not_every_second_step_is_refused() -> None:
    leading = Schedule(prediction_type="v_prediction", timestep_spacing="leading")
    with pytest.raises(ValueError, match=r"got 8 steps with leading spacing.*expected trailing"):
        leaps(leading, 8)


@every_schedule
@every_count
def test_losses_and_their_gradients_are_finite_from_the_first_step_to_the_last(schedule: Schedule, steps: int) -> None:
    leap, latent = leaps(schedule, steps), latents(steps).float()
    cond, uncond = (latents(steps, seed).float().requires_grad_() for seed in (1, 2))
    assert leap.t[0] == 999
    target = two_step_target(predict, latent, leap)
    loss = cfg_aware_loss(cond, uncond, torch.full((steps, 1, 1, 1), 14.0), latent, target, leap.now)
    loss.backward()
    for tensor in (target, snr_weight(leap.now), loss, cond.grad, uncond.grad):
        assert tensor is not None
        assert tensor.isfinite().all()


@every_schedule
def test_the_weight_is_finite_at_every_step(schedule: Schedule) -> None:
    alpha, sigma = torch.from_numpy(schedule.alphas).float(), torch.from_numpy(schedule.sigmas).float()
    weight = snr_weight((alpha, sigma))
    assert weight.isfinite().all()
    assert weight[-1] == 1
    assert weight[0].item() == pytest.approx((schedule.alphas[0] / schedule.sigmas[0]) ** 2, rel=1e-3)


def test_the_weight_takes_the_larger_of_the_errors_in_x_and_in_noise() -> None:
    """alpha dx = -sigma deps, so weighting dx^2 by alpha^2/sigma^2 makes it deps^2 (arXiv 2202.00512, section 4)."""
    latent, v, target = (latents(1, seed) for seed in range(3))
    for alpha, sigma in ((0.6, 0.8), (0.8, 0.6)):
        now = torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
        in_x = (alpha * latent - sigma * v - target).square().mean()
        in_noise = (sigma * latent + alpha * v - (latent - alpha * target) / sigma).square().mean()
        torch.testing.assert_close(vanilla_loss(v, latent, target, now), torch.maximum(in_x, in_noise))


def test_guidance_of_one_makes_the_cfg_aware_loss_the_vanilla_one() -> None:
    leap, latent = exact(leaps(STICKERS, 4)), latents(4)
    cond, uncond, target = (latents(4, seed) for seed in (1, 2, 3))
    one = torch.ones(4, 1, 1, 1, dtype=torch.float64)
    vanilla = vanilla_loss(cond, latent, target, leap.now)
    torch.testing.assert_close(cfg_aware_loss(cond, uncond, one, latent, target, leap.now), vanilla)
    assert not torch.isclose(cfg_aware_loss(cond, uncond, 3 * one, latent, target, leap.now), vanilla)


def test_a_guided_student_that_equals_its_guided_teacher_has_no_loss() -> None:
    leap, latent = exact(leaps(STICKERS, 4)), latents(4)
    w = torch.tensor([2.0, 5.0, 9.0, 14.0], dtype=torch.float64).reshape(4, 1, 1, 1)

    def teacher(z: Tensor, t: Tensor) -> Tensor:
        return guide(predict(z, t), predict(z, t + 100), w)

    target = two_step_target(teacher, latent, leap)
    alpha, sigma = leap.now
    wanted = velocity(target, (latent - alpha * target) / sigma, alpha, sigma)
    uncond = latents(4, 5)
    cond = (wanted + (w - 1) * uncond) / w  # Eq. 10, solved
    assert cfg_aware_loss(cond, uncond, w, latent, target, leap.now).item() < 1e-18


def test_both_branches_of_the_student_learn_each_by_its_share() -> None:
    leap, latent, target = exact(leaps(STICKERS, 2)), latents(2), latents(2, 3)
    cond, uncond = (latents(2, seed).requires_grad_() for seed in (1, 2))
    w = torch.full((2, 1, 1, 1), 4.0, dtype=torch.float64)
    cfg_aware_loss(cond, uncond, w, latent, target, leap.now).backward()
    assert cond.grad is not None
    assert uncond.grad is not None
    torch.testing.assert_close(3 * cond.grad, -4 * uncond.grad)  # d(4 c - 3 u)
    assert cond.grad.abs().min() > 0


def test_the_original_loss_by_hand() -> None:
    assert original_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])).item() == 2.5


def test_gamma_brings_the_original_loss_to_the_distillation_loss_and_passes_no_gradient() -> None:
    a, b = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    distilled, original = a * a, b * b * b  # 9 and 8
    gamma = dynamic_gamma(0.2, distilled, original)
    assert gamma.item() == pytest.approx(0.2 * 9 / 8)
    assert not gamma.requires_grad
    loss = mixed_loss(distilled, original, 0.2)
    assert loss.item() == pytest.approx(9 * 1.2)
    loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.item() == pytest.approx(6)  # through L_dstl alone
    assert b.grad.item() == pytest.approx(0.2 * 9 / 8 * 12)
    assert math.isclose(mixed_loss(distilled, original, 0.0).item(), 9)
