"""The formulas of step distillation (paper section 4.2, Eq. 6-11), under their numbers: tensors and numbers, no more.

Latents z, velocities v and clean latents x are `[B, C, h, w]`; alpha, sigma and w are `[B, 1, 1, 1]`; losses are
scalars, means over rows and pixels. v = alpha eps - sigma x, so x = alpha z - sigma v and eps = sigma z + alpha v.
Time falls: t > t' > t'', from noise to picture. DDIM's step (Eq. 2, 7) is the sampler's own `ddim_step`, guidance
(Eq. 3, 10) the sampler's own `guide`, and v (Eq. 6) the schedule's `velocity`.
"""

from collections.abc import Callable

from torch import Tensor

from snapfusion.diffusion.guidance import guide
from snapfusion.diffusion.sampler import ddim_step
from snapfusion.diffusion.schedule import Level, x_and_noise
from snapfusion.stages.distill_steps.grid import Leap


def two_step_target(predict: Callable[[Tensor, Tensor], Tensor], latent: Tensor, leap: Leap) -> Tensor:
    """The x with which one step from z_t arrives where the teacher's two arrive: Eq. 7, then the fraction of Eq. 9.

    `predict(z, t)` is the teacher's velocity, guided or not; it is called at (z_t, t) and (z_t', t').
    """
    middle = ddim_step(latent, predict(latent, leap.t), leap.now, leap.middle, "v_prediction")
    arrival = ddim_step(middle, predict(middle, leap.t_middle), leap.middle, leap.then, "v_prediction")
    (alpha, sigma), (alpha_then, sigma_then) = leap.now, leap.then
    kept = sigma_then / sigma  # the share of the noise in z_t that z_t'' still holds; sigma > 0 wherever a step begins
    return (arrival - kept * latent) / (alpha_then - kept * alpha)


def snr_weight(now: Level[Tensor]) -> Tensor:
    """max(alpha^2 / sigma^2, 1), "truncated SNR" of arXiv 2202.00512 (Eq. 9): an error in x or in eps, the larger."""
    alpha, sigma = now
    return (alpha**2 / sigma**2).clamp(min=1)


def vanilla_loss(velocity: Tensor, latent: Tensor, target: Tensor, now: Level[Tensor]) -> Tensor:
    """L_vani: the student's x, alpha z - sigma v (Eq. 8), against `two_step_target`, weighted by its SNR (Eq. 9)."""
    x, _ = x_and_noise(velocity, latent, *now, "v_prediction")
    return (snr_weight(now) * (x - target).square()).mean()


def cfg_aware_loss(
    cond: Tensor, uncond: Tensor, w: Tensor, latent: Tensor, target: Tensor, now: Level[Tensor]
) -> Tensor:
    """L_cfg: L_vani of the student's guided velocity w cond - (w - 1) uncond (Eq. 10).

    The teacher of `target` was guided by the same w at both of its steps. The gradient reaches both branches.
    """
    return vanilla_loss(guide(cond, uncond, w), latent, target, now)


def original_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """L_ori: the student's velocity for the caption alone against alpha eps - sigma x of the data (Eq. 6)."""
    return (velocity - target).square().mean()


def dynamic_gamma(gamma: float, distilled: Tensor, original: Tensor) -> Tensor:
    """gamma L_dstl / L_ori without gradient: L_ori brought to the size of L_dstl, then weighted by gamma.

    The paper only says that its gamma is dynamic and rescales L_ori to the size of L_dstl: the formula is ours.
    """
    return gamma * (distilled / original).detach()


def mixed_loss(distilled: Tensor, original: Tensor, gamma: float) -> Tensor:
    """L = L_dstl + gamma_eff L_ori (Eq. 11). L_dstl is L_cfg in a share p of all batches and L_vani in the others."""
    return distilled + dynamic_gamma(gamma, distilled, original) * original
