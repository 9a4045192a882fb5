"""From noise to velocity prediction: a checkpoint as Stable Diffusion's is fine-tuned before its steps are distilled.

The two are one linear map apart, v = (eps - sigma z) / alpha, but no UNet can take that map into its weights: it
depends on t and adds the input. So the network is trained on, from its own weights. What it learns is, by default, the
velocity that its own former prediction stands for: the same function in other words, so the pictures stay, and a target
without the noise that the data's alpha eps - sigma x has (Eq. 6, what the paper trains with; an option here).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snapfusion.autocast import autocast
from snapfusion.checkpoint import Checkpoint, load_checkpoint
from snapfusion.data.prompts import prompt_of
from snapfusion.denoising import Batch, draw_batch, weighted_error
from snapfusion.diffusion.schedule import Schedule, velocity, x_and_noise
from snapfusion.fit import Share
from snapfusion.latents import Cache, train_and_cells
from snapfusion.metrics.fidelity import psnr
from snapfusion.sampling import Sampling, decode, draw_latents
from snapfusion.stage_folder import run_in_folder
from snapfusion.stages.distill_steps.config import VelocityConfig
from snapfusion.stages.distill_steps.training import (
    CHECKPOINT,
    FREE,
    carry_licences,
    device_of_run,
    inputs,
    read_caches,
    train_checkpoint,
)

PICTURES_AT_ONCE = 8
SNR_GAMMA = 5.0


@dataclass(frozen=True)
class Result:
    """The checkpoint that predicts velocity, and how near its pictures are to those from before."""

    checkpoint: Path
    figures: Mapping[str, Any]

    def describe(self) -> str:
        """What was measured, in a line."""
        same, other = self.figures["pictures_db"], self.figures["other_seed_db"]
        return f"{self.checkpoint}: pictures {same:.1f} dB from before (another seed's are {other:.1f} dB away)"


def run(config: VelocityConfig, checkpoint: Path, data: Path, out: Path, cache: Path | None = None) -> Result:
    """Make a checkpoint that predicts velocity of one that predicts noise; arguments and errors as in `stage.run`."""
    given = inputs(data, checkpoint=checkpoint)

    def work(folder: Path) -> dict[str, Any]:
        figures = convert(config, load_checkpoint(checkpoint), data, folder, cache or out.parent / "cache")
        carry_licences(checkpoint, folder)
        return figures

    figures = run_in_folder(out, config, given, work, FREE)
    return Result(out / CHECKPOINT, figures)


def convert(config: VelocityConfig, before: Checkpoint, data: Path, folder: Path, cache: Path) -> dict[str, Any]:
    """Train and write the checkpoint; returns what was measured."""
    if before.schedule.prediction_type != "epsilon":
        raise ValueError(f"got a checkpoint that predicts {before.schedule.prediction_type}, expected epsilon")
    schedule = replace(before.schedule, prediction_type="v_prediction")
    train, cells = read_caches(config, before, data, cache)
    former = before.unet.requires_grad_(False).eval().to(device_of_run())  # pyright: ignore[reportArgumentType]
    after = replace(before, unet=copy.deepcopy(former).requires_grad_(True), schedule=schedule)

    def loss_of(unet: nn.Module, batch: Batch) -> Tensor:
        target = batch.target if config.target == "data" else own_velocity(former, batch, before.schedule, config)
        return weighted_error(unet(batch.latent, batch.t, batch.embedding).sample.float(), target, batch.weight)

    def loss(unet: nn.Module, step: int, share: Share) -> Tensor:
        return loss_of(unet, draw(train, schedule, config, step)[share.rows])

    @torch.no_grad()
    def measure(unet: nn.Module) -> dict[str, float]:
        unseen = replace(config, dropout=0.0, recoloured=0.0, seed=0)
        with autocast(device_of_run(), config.precision == "bf16"):
            found = [loss_of(unet, draw(cells, schedule, unseen, index)) for index in range(config.held_out_batches)]
        return {"velocity": torch.stack(found).mean().item()}

    figures: dict[str, Any] = {"images": config.steps_of_training * config.batch, "before": measure(after.unet)}
    trained = train_checkpoint(after, loss, measure, config, folder, "noise to velocity")
    figures["after"] = measure(trained)
    _, held_out = train_and_cells(data, config.subset == "core")
    prompts = [prompt_of(pair) for pair in held_out[: config.pictures]]
    return figures | compare_pictures(before, replace(after, unet=trained), prompts, config)


def draw(cache: Cache, schedule: Schedule, config: VelocityConfig, step: int) -> Batch:
    """The batch of one step, over all of the schedule's t."""
    # The velocity in a predicted noise has that noise's error, 1 / alpha times as large: min-SNR evens it out.
    return draw_batch(cache, schedule, config.batch, config.seed, step, config.shares, snr_gamma=SNR_GAMMA)


@torch.no_grad()
def own_velocity(former: nn.Module, batch: Batch, schedule: Schedule, config: VelocityConfig) -> Tensor:
    """The velocity `[B, C, h, w]` that a network's predicted noise stands for: (eps - sigma z) / alpha."""
    with autocast(batch.latent.device, config.precision == "bf16"):
        noise = former(batch.latent, batch.t, batch.embedding).sample.float()
    levels = (torch.from_numpy(level[batch.t.cpu().numpy()]) for level in (schedule.alphas, schedule.sigmas))
    alpha, sigma = (level.float().to(noise.device)[:, None, None, None] for level in levels)
    return velocity(*x_and_noise(noise, batch.latent, alpha, sigma, "epsilon"), alpha, sigma)


def compare_pictures(
    before: Checkpoint, after: Checkpoint, prompts: list[str], config: VelocityConfig
) -> dict[str, float]:
    """Median PSNR in dB of the pictures after to those before, same seeds; and of those before to the next seed's."""
    sampling = Sampling(config.picture_steps, config.picture_guidance)

    def pictures(checkpoint: Checkpoint, first: int) -> Tensor:
        images = []
        for start in range(0, len(prompts), PICTURES_AT_ONCE):
            some = prompts[start : start + PICTURES_AT_ONCE]
            seeds = range(first + start, first + start + len(some))
            images.append(decode(checkpoint.vae, draw_latents(checkpoint, some, seeds, sampling)))
        return torch.cat(images)

    reference = pictures(before, 0)
    return {
        "pictures_db": psnr(pictures(after, 0), reference).median().item(),
        "other_seed_db": psnr(pictures(before, 1), reference).median().item(),
    }
