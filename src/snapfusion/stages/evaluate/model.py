"""What is evaluated: a bundle as a person runs it, or a checkpoint in torch, both as one function that draws."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from snapfusion.autocast import has_bf16
from snapfusion.bundle import MANIFEST, read_bundle
from snapfusion.checkpoint import Checkpoint, hash_of, load_checkpoint
from snapfusion.diffusion.guidance import guided_steps
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.generate import OpenBundle, open_bundle
from snapfusion.runtimes.choice import load
from snapfusion.sampling import Sampling, decode, draw_latents, latent_shape, pixels

Image = NDArray[np.uint8]  # [H, W, 3]
Draw = Callable[[Sequence[str], Sequence[int], float], Iterator[Image]]

STEPS = 50  # of a checkpoint that was not distilled: the paper's for Stable Diffusion


@dataclass(frozen=True)
class Drawing:
    """How a model is to draw."""

    steps: int | None = None
    """None for the bundle's own, or as many as the checkpoint was distilled for, or 50."""
    scheduler: Scheduler | None = None
    """None for the bundle's own, or DDIM."""
    timestep_shift: float | None = None
    """None for the model's own."""
    guidance_stop: float | None = None
    """Share of the steps that are guided; None for the bundle's own, or all."""
    batch: int = 8
    """Pictures that a checkpoint draws together; this and what follows concern no bundle."""
    device: str = "cpu"
    bf16: bool = False
    """Whether its UNet computes in bfloat16, where `device` has it."""


AS_IT_IS = Drawing()


@dataclass(frozen=True)
class Model:
    """A text-to-image model under its name. `draw(prompts, seeds, guidance)` gives the pictures in order."""

    name: str
    sha256: str
    """What the figures belong to: of the bundle's manifest, or of all files of the checkpoint."""
    engine: str
    steps: int
    scheduler: Scheduler
    side: int
    """Of its pictures, pixels."""
    draw: Draw
    folder: Path
    opened: OpenBundle | Checkpoint | None
    """What draws, in memory; None for a model that is nothing but a function."""
    timestep_shift: float = 1.0
    """Where its steps are: see `snapfusion.diffusion.schedule`."""
    guidance_stop: float = 1.0
    """Share of the steps that are guided, the first ones."""
    bf16: bool = False
    """Whether a checkpoint's UNet computes in bfloat16."""

    def describe(self, guidance: float) -> str:
        """How it draws, on a line: all that a figure depends on besides the protocol."""
        shift = f" with shift {self.timestep_shift:g}" if self.timestep_shift != 1 else ""
        guided = guided_steps(self.steps, self.guidance_stop, guidance)
        stop = f" in the first {guided} of them" if 0 < guided < self.steps else ""
        return (
            f"{self.name} {self.sha256[:12]} in {self.engine}: {self.steps} steps of {self.scheduler}{shift}, guidance "
            f"{guidance:g}{stop}, {self.side} px; the seed of a picture is SHA-256 of seed|its key, 32 bits"
        )


def open_model(folder: Path, how: Drawing = AS_IT_IS) -> Model:
    """The bundle or the checkpoint in a folder.

    Raises:
        ValueError: the folder holds neither, or a checkpoint that was distilled for other steps.
    """
    if (folder / MANIFEST).is_file():
        opened = open_bundle(folder)
        if how.timestep_shift is not None:
            schedule = opened.bundle.schedule.placed(how.timestep_shift)
            opened = replace(opened, bundle=replace(opened.bundle, schedule=schedule))
        bundle, defaults = opened.bundle, opened.bundle.manifest.defaults
        steps = how.steps or defaults.steps
        engine = f"{bundle.runtime} {load(bundle.runtime).precision()}"
        scheduler = how.scheduler or defaults.scheduler
        stop = defaults.guidance_stop if how.guidance_stop is None else how.guidance_stop
        draw, side = _draw_one_by_one(opened, steps, scheduler, stop), bundle.image_size
        return Model(
            bundle.manifest.name, bundle.hash, engine, steps, scheduler, side, draw, folder, opened,
            bundle.schedule.timestep_shift, stop,
        )  # fmt: skip
    checkpoint = load_checkpoint(folder)
    if how.timestep_shift is not None:
        checkpoint = replace(checkpoint, schedule=checkpoint.schedule.placed(how.timestep_shift))
    steps, scheduler = how.steps or checkpoint.schedule.distilled_steps or STEPS, how.scheduler or "ddim"
    stop, side = 1.0 if how.guidance_stop is None else how.guidance_stop, latent_shape(checkpoint)[1]
    bf16 = how.bf16 and has_bf16(torch.device(how.device))
    sampling = Sampling(steps, scheduler=scheduler, guidance_stop=stop, bf16=bf16)
    return Model(
        folder.resolve().name,
        hash_of(folder),
        f"torch float32{', its UNet in bfloat16,' if bf16 else ''} on {how.device}",
        steps,
        scheduler,
        side * checkpoint.vae.factor,
        _draw_batches(checkpoint, sampling, how.batch, how.device),
        folder,
        checkpoint,
        checkpoint.schedule.timestep_shift,
        stop,
        bf16,
    )


def hash_of_model(folder: Path) -> str:
    """SHA-256 of the bundle or checkpoint in a folder, as in `Model`, without bringing it into memory."""
    return read_bundle(folder).hash if (folder / MANIFEST).is_file() else hash_of(folder)


def _draw_one_by_one(bundle: OpenBundle, steps: int, scheduler: Scheduler, stop: float) -> Draw:
    def draw(prompts: Sequence[str], seeds: Sequence[int], guidance: float) -> Iterator[Image]:
        for prompt, seed in zip(prompts, seeds, strict=True):
            (image,) = bundle(
                prompt, seed=seed, steps=steps, guidance=guidance, scheduler=scheduler, guidance_stop=stop
            )
            yield np.asarray(image)

    return draw


def _draw_batches(checkpoint: Checkpoint, sampling: Sampling, batch: int, device: str) -> Draw:
    networks: list[nn.Module] = [checkpoint.text_encoder, checkpoint.unet, checkpoint.vae]
    for network in networks:
        network.to(device).eval()

    def draw(prompts: Sequence[str], seeds: Sequence[int], guidance: float) -> Iterator[Image]:
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            latent = draw_latents(checkpoint, prompts[part], seeds[part], replace(sampling, guidance=guidance))
            yield from pixels(decode(checkpoint.vae, latent))

    return draw
