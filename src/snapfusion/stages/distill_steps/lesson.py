"""What a student loses against its teacher on one batch: Eq. 11 with both networks in it."""

import torch
from torch import Tensor, nn

from snapfusion.autocast import autocast
from snapfusion.diffusion.guidance import guide
from snapfusion.stages.distill_steps.batch import Batch
from snapfusion.stages.distill_steps.losses import (
    cfg_aware_loss,
    mixed_loss,
    original_loss,
    two_step_target,
    vanilla_loss,
)


def branches(unet: nn.Module, latent: Tensor, t: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Velocities `[B, C, h, w]` for the captions and, where the batch is guided, for the empty prompt: in one call."""
    if batch.w is None:
        return unet(latent, t, batch.embedding).sample.float(), None
    rows = torch.cat([batch.embedding, batch.empty.expand_as(batch.embedding)])
    both = unet(torch.cat([latent, latent]), torch.cat([t, t]), rows).sample.float()
    cond, uncond = both.chunk(2)
    return cond, uncond


def teach(teacher: nn.Module, batch: Batch, bf16: bool) -> Tensor:
    """The x that the student should predict, `[B, C, h, w]`: of two steps of the teacher, guided as the batch says."""

    def predict(latent: Tensor, t: Tensor) -> Tensor:
        cond, uncond = branches(teacher, latent, t, batch)
        return cond if uncond is None or batch.w is None else guide(cond, uncond, batch.w)  # Eq. 10

    with torch.no_grad(), autocast(batch.latent.device, bf16):
        return two_step_target(predict, batch.latent, batch.leap)


def losses(student: nn.Module, batch: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
    """(L_dstl, L_ori) of a student that should reach `target`.

    Both come from one call of the student: L_ori is of the same latents on the same grid, since at no other step is
    the student ever asked.
    """
    cond, uncond = branches(student, batch.latent, batch.leap.t, batch)
    if uncond is None or batch.w is None:
        return vanilla_loss(cond, batch.latent, target, batch.leap.now), original_loss(cond, batch.velocity)
    plain = torch.where(batch.dropped[:, None, None, None], uncond, cond)
    distilled = cfg_aware_loss(cond, uncond, batch.w, batch.latent, target, batch.leap.now)
    return distilled, original_loss(plain, batch.velocity)


def distillation_loss(student: nn.Module, teacher: nn.Module, batch: Batch, gamma: float, bf16: bool) -> Tensor:
    """Eq. 11 on one batch: the gradient reaches the student alone."""
    distilled, original = losses(student, batch, teach(teacher, batch, bf16))
    return mixed_loss(distilled, original, gamma)
