"""From N steps to N/2: a student learns to do in one step what its teacher does in two.

    student, teacher, set -> latents and embeddings -> Eq. 11 -> OUT/checkpoint, whose scheduler says how many steps

The paper's pipeline is a few of these runs, one after another: see `plan.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snapfusion.autocast import autocast
from snapfusion.checkpoint import Checkpoint, load_checkpoint
from snapfusion.fit import Share
from snapfusion.latents import Cache
from snapfusion.stage_folder import run_in_folder
from snapfusion.stages.distill_steps.batch import draw_batch
from snapfusion.stages.distill_steps.config import Config
from snapfusion.stages.distill_steps.grid import Leap, leaps
from snapfusion.stages.distill_steps.lesson import distillation_loss, losses, teach
from snapfusion.stages.distill_steps.training import (
    CHECKPOINT,
    FREE,
    carry_licences,
    device_of_run,
    inputs,
    read_caches,
    train_checkpoint,
)


@dataclass(frozen=True)
class Result:
    """A student's checkpoint, how many steps it is for, and its losses on held-out pictures."""

    checkpoint: Path
    steps: int
    figures: Mapping[str, Any]

    def describe(self) -> str:
        """What was reached, in a line for each loss."""
        before, after = self.figures["before"], self.figures["after"]
        rows = [f"{name:<10} {before[name]:.4f} -> {after[name]:.4f}" for name in after]
        return "\n".join([f"{self.checkpoint}: {self.steps} steps; losses on held-out pictures:", *rows])


def run(config: Config, student: Path, teacher: Path, data: Path, out: Path, cache: Path | None = None) -> Result:
    """Distil the checkpoint `teacher` at `2 * config.steps` steps into the checkpoint `student` at `config.steps`.

    Args:
        student: Where to start from; the network may be another than the teacher's, or the same.
        teacher: Of the same text encoder, latents and noise levels; undistilled, or distilled for that many steps.
        data: A set of `snapfusion data pairs` or `snapfusion data stickers`.
        out: The run's folder. The same call on it goes on, or reads what is there.
        cache: Folder of latents and embeddings, which runs on one set can share; by default `cache` beside `out`.

    Raises:
        ValueError: a student that cannot learn from this teacher, no set in `data`, or `out` is of something else.
        PausedError: `config.max_seconds` are over.
    """
    given = inputs(data, student=student, teacher=teacher)

    def work(folder: Path) -> dict[str, Any]:
        pair = load_checkpoint(student), load_checkpoint(teacher)
        figures = distil(config, *pair, data, folder, cache or out.parent / "cache")
        carry_licences(student, folder)
        return figures

    figures = run_in_folder(out, config, given, work, FREE)
    return Result(out / CHECKPOINT, config.steps, figures)


def distil(
    config: Config, student: Checkpoint, teacher: Checkpoint, data: Path, folder: Path, cache: Path
) -> dict[str, Any]:
    """Train the student and write it to `folder / "checkpoint"`; returns what was measured."""
    check_pair(student, teacher, config.steps, config.timestep_shift)
    placed = {"timestep_spacing": "trailing", "timestep_shift": config.timestep_shift}
    schedule = replace(student.schedule, **placed, distilled_steps=config.steps)
    train, cells = read_caches(config, student, data, cache)
    device, bf16 = device_of_run(), config.precision == "bf16"
    steps = leaps(schedule, config.steps).to(device)
    guide = teacher.unet.requires_grad_(False).eval().to(device)  # pyright: ignore[reportArgumentType]
    student.unet.to(device)  # pyright: ignore[reportArgumentType]

    def loss(unet: nn.Module, step: int, share: Share) -> Tensor:
        batch = draw_batch(train, steps, config, step)[share.rows]
        return distillation_loss(unet, guide, batch, config.gamma, bf16)

    def measure(unet: nn.Module) -> dict[str, float]:
        return held_out_losses(unet, guide, cells, steps, config)

    before = measure(student.unet)
    name = f"{2 * config.steps} to {config.steps} steps"
    trained = train_checkpoint(replace(student, schedule=schedule), loss, measure, config, folder, name)
    return {
        "steps": config.steps,
        "images": config.steps_of_training * config.batch,
        "before": before,
        "after": measure(trained),
    }


@torch.no_grad()
def held_out_losses(
    student: nn.Module, teacher: nn.Module, cells: Cache, steps: Leap, config: Config
) -> dict[str, float]:
    """Means of L_vani, L_cfg and L_ori, which is one for both; the same pictures, steps, noise and w at every call."""
    bf16, found = config.precision == "bf16", {}
    for name, p in (("vanilla", 0.0), ("cfg_aware", 1.0)):
        drawn = replace(config, p=p, dropout=0.0, recoloured=0.0, seed=0)
        pairs = []
        for index in range(config.held_out_batches):
            batch = draw_batch(cells, steps, drawn, index)
            target = teach(teacher, batch, bf16)
            with autocast(batch.latent.device, bf16):
                pairs.append(torch.stack(losses(student, batch, target)))
        found[name], found["original"] = torch.stack(pairs).mean(0).tolist()
    return found


def check_pair(student: Checkpoint, teacher: Checkpoint, steps: int, shift: float = 1.0) -> None:
    """Raise `ValueError` unless `student` can learn `steps` steps, placed by `shift`, from `teacher`."""
    for role, checkpoint in (("student", student), ("teacher", teacher)):
        if checkpoint.schedule.prediction_type != "v_prediction":
            raise ValueError(
                f"got a {role} that predicts {checkpoint.schedule.prediction_type}, expected v_prediction; "
                "turn it first: snapfusion distill velocity"
            )
    if teacher.schedule.distilled_steps not in (0, 2 * steps):
        raise ValueError(
            f"got a teacher distilled for {teacher.schedule.distilled_steps} steps to teach {steps}, expected "
            f"one for {2 * steps}, or one that was not distilled"
        )
    if teacher.schedule.distilled_steps and teacher.schedule.timestep_shift != shift:
        raise ValueError(
            f"got a teacher distilled with timestep shift {teacher.schedule.timestep_shift:g}, expected {shift:g} as "
            "the student's: it knows no other steps"
        )
    if not np.array_equal(student.schedule.alphas, teacher.schedule.alphas):
        raise ValueError("got a student and a teacher of different noise levels, expected the same schedule")
    if not _same(student.text_encoder, teacher.text_encoder) or student.length != teacher.length:
        raise ValueError("got a student and a teacher with different text encoders, expected the same embeddings")
    vaes = student.vae, teacher.vae
    scales = {vae.config["scaling_factor"] for vae in vaes}
    if len(scales) > 1 or not _same(*(vae.encoder for vae in vaes)):
        raise ValueError("got a student and a teacher of different latents, expected the same encoder of pictures")


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same weights, up to rounding to float16."""
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(
        here[name].shape == there[name].shape
        and torch.allclose(here[name].float(), there[name].float(), rtol=1e-3, atol=1e-6)
        for name in here
    )
