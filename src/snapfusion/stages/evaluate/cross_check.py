"""The same latents by diffusers' own pipeline: a proof that figures are of the checkpoint and not of our sampler."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from snapfusion.checkpoint import WEIGHTS, Checkpoint
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.json_file import read_json
from snapfusion.sampling import Sampling, draw_latents, latent_shape, noise_of
from snapfusion.stages.evaluate.exam import Request
from snapfusion.weights import variant_of

TOLERANCE = 1e-4


@dataclass(frozen=True)
class CrossCheck:
    """How far our latents are from those of diffusers' `StableDiffusionPipeline`: same noise, same scheduler."""

    pictures: int
    steps: int
    guidance: float
    relative_error: float
    """|ours - theirs| / |theirs| of the worst picture."""
    passed: bool
    """Whether that is at most `TOLERANCE`."""
    scheduler: Scheduler = "ddim"

    def describe(self) -> str:
        """All of it on a line."""
        verdict = "equal" if self.passed else "NOT EQUAL"
        return (
            f"diffusers' pipeline: {verdict}, latents within {self.relative_error:.1e} of ours relative, tolerance "
            f"{TOLERANCE:g} ({self.pictures} pictures, {self.steps} steps of {self.scheduler}, "
            f"guidance {self.guidance:g})"
        )


def cross_check(
    folder: Path,
    checkpoint: Checkpoint,
    requests: Sequence[Request],
    steps: int,
    guidance: float,
    scheduler: Scheduler = "ddim",
) -> CrossCheck | None:
    """Draw the latents of some requests both ways; None for a checkpoint that diffusers has no pipeline for, or whose
    steps are shifted, as those of diffusers' DDIM cannot be.

    `checkpoint` is the one in `folder`. Only the networks' files are shared: diffusers reads them by itself.
    """
    foreign = read_json(folder / "model_index.json").get("_class_name") != "StableDiffusionPipeline"
    if foreign or checkpoint.schedule.timestep_shift != 1:
        return None
    # Seconds of imports, and warnings of what is not installed, that only this needs.
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    device = checkpoint.unet.device
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        variant=variant_of(folder / "unet", WEIGHTS),
        safety_checker=None,
        feature_extractor=None,  # of the safety checker, and not there where a hub's checkpoint was fetched
    )
    pipeline.scheduler = scheduler_of_diffusers(scheduler, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device, torch.float32)
    errors: list[float] = []
    for request in requests:
        ours = draw_latents(checkpoint, [request.prompt], [request.seed], Sampling(steps, guidance, scheduler))
        theirs: Any = cast(Any, pipeline)(
            request.prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=noise_of(latent_shape(checkpoint), [request.seed]).to(device),
            output_type="latent",
        ).images
        errors.append(((ours - theirs).norm() / theirs.norm()).item())
    return CrossCheck(len(requests), steps, guidance, max(errors), max(errors) <= TOLERANCE, scheduler)


def scheduler_of_diffusers(scheduler: Scheduler, config: dict[str, Any]) -> Any:
    """diffusers' scheduler that takes the steps which ours of that name takes."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    if scheduler == "ddim":
        return DDIMScheduler.from_config(config)
    if scheduler == "euler":
        return EulerDiscreteScheduler.from_config(config)
    fields = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
    return DPMSolverMultistepScheduler.from_config(config, **fields)
