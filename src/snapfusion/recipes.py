"""Whole runs as values: what `snapfusion compress --recipe NAME` does, and how."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import transformers

from snapfusion import tiny as tiny_inputs
from snapfusion.compress import Inputs, Recipe, Result, compress
from snapfusion.convert import as_folder, load
from snapfusion.costs import costs_of, matrix_speed
from snapfusion.data.pairs import load_index, read_images
from snapfusion.data.stickers import build
from snapfusion.json_file import read_json
from snapfusion.lora import Lora
from snapfusion.plan import describe, rows_of
from snapfusion.processes import main_first
from snapfusion.progress import log_to_terminal
from snapfusion.stages.distill_decoder import stage as distill_decoder
from snapfusion.stages.distill_steps import stage as distill_steps
from snapfusion.stages.distill_steps.to_velocity import VelocityConfig
from snapfusion.stages.evaluate import stage as evaluate
from snapfusion.stages.evolve import stage as evolve
from snapfusion.stages.export import stage as export
from snapfusion.stages.profile import stage as profile

Name = Literal["stickers", "sd15", "tiny"]


def stickers() -> Recipe:
    """The stickers base to a bundle that draws in 8 steps, its UNet at 80%; more than an hour on two cores."""
    return Recipe(
        velocity=VelocityConfig(),
        profile=profile.Config(),
        evolve=evolve.Config(
            cuts=1, room=0.035, score="trajectory", prompts=16, steps=6, skip_rise=50,
            noise_shift=2.0, mirrored=0.0, robust_images=3_200, round_images=1_600, finetune_images=6_400,
        ),
        distill_steps=None,  # placed well, 8 steps lose nothing of this base; what distilling costs: docs/steps.md
        distill_decoder=distill_decoder.Config(
            latents=512, held_out=96, steps=8, guidance=4.0, scheduler="dpm++", timestep_shift=3.0, images=16_000,
            lpips_weight=0.1,
        ),
        export=export.Config(
            name="stickers", text_encoder="int4-words", unet="int4", steps=8, guidance=4.0, guidance_stop=0.75,
            scheduler="dpm++", timestep_shift="search",
        ),
        evaluate=evaluate.Config(
            protocols=("cells",), guidance=4.0, curve=(2.0, 4.0, 6.0), curve_pictures=16, batch=16,
        ),
        budget=0.8,
    )  # fmt: skip


def sd15() -> Recipe:
    """Stable Diffusion v1.5, as far as the paper says how: 8 steps, batches of its size, its range of guidance."""
    return Recipe(
        velocity=VelocityConfig(batch=256, accumulate=8, gradient_checkpointing=True, lr=5e-5),
        profile=profile.Config(),
        evolve=evolve.Config(guidance=7.5, batch=256, accumulate=8, gradient_checkpointing=True),
        distill_steps=distill_steps.Config(batch=256, accumulate=8, gradient_checkpointing=True, lr=5e-5),
        distill_decoder=distill_decoder.Config(batch=16),
        export=export.Config(text_encoder="fp16", unet="fp16", vae_decoder="fp16"),
        evaluate=evaluate.Config(cross_check=2),
    )


def tiny() -> Recipe:
    """Every stage, for as short as it goes: a minute on two CPU cores, for a checkpoint of its own."""
    return Recipe(
        velocity=None,
        profile=profile.Config(),
        evolve=evolve.Config(
            cuts=1, copy_rounds=0, score="denoising", latents=8, skip_rise=2, robust_images=16,
            round_images=8, finetune_images=16, batch=4, warmup=2, variants=2, precision="no", draw_batch=4,
        ),
        distill_steps=distill_steps.Config(
            images=16, batch=4, warmup=2, variants=2, precision="no", tracker=None, held_out_batches=1, steps=2,
        ),
        distill_decoder=distill_decoder.Config(
            latents=8, held_out=4, steps=2, guidance=2.0, drawn_together=4, images=32, batch=4, warmup=2,
            precision="no",
        ),
        export=export.Config(
            name="tiny", steps=2, guidance=2.0, prompts=("a fox, 3D render", "a boat, flat"),
            text_encoder="fp16", unet="fp16", vae_decoder="fp16",
        ),
        evaluate=evaluate.Config(
            protocols=("cells",), steps=2, guidance=2.0, curve=(), runs=1, grid=4, pairs=4, batch=8,
        ),
        budget=0.8,
    )  # fmt: skip


STICKERS = 10_213  # pictures of the set that is built where none is named
NO_DATA = (
    "got no --data, expected captioned pictures like those that {} draws: snapfusion data pairs makes a set of them"
)
NO_CHECKPOINT = "got no checkpoint, expected a folder in diffusers' layout or a single file for --recipe {}"
TRAIN = ("velocity", "evolve", "distill_steps", "distill_decoder")
"""The stages that do."""
RECIPES = {"stickers": stickers, "sd15": sd15, "tiny": tiny}


@dataclass(frozen=True)
class Changes:
    """What a person may change of a recipe without editing it; None leaves it as it is."""

    budget: float | None = None
    """Share of the UNet's milliseconds that evolution may keep; by default the recipe's."""
    accumulate: int | None = None
    """Parts in which every stage computes a batch, as far as it divides into them: the more, the less memory. By
    default the recipe's."""

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < 1:
            raise ValueError(f"got --budget {self.budget:g}, expected a share of the milliseconds, below 1")
        if self.accumulate is not None and self.accumulate < 1:
            raise ValueError(f"got --accumulate {self.accumulate}, expected at least 1")

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe, changed."""
        if self.budget is not None:
            recipe = replace(recipe, budget=self.budget)
        if self.accumulate is not None:
            stages = {name: stage for name in TRAIN if (stage := getattr(recipe, name)) is not None}
            parts = {name: math.gcd(stage.batch, self.accumulate) for name, stage in stages.items()}
            changed = {name: replace(stage, accumulate=parts[name]) for name, stage in stages.items()}
            recipe = replace(recipe, **changed)
        return recipe


def start(
    name: Name,
    checkpoint: Path | None,
    data: Path | None,
    table: Path | None,
    out: Path,
    max_seconds: float = math.inf,
    loras: Sequence[Lora] = (),
    changes: Changes = Changes(),
) -> Result:
    """Run a recipe in folder `out`, on what it makes or fetches itself where nothing is named; see `compress`."""
    log_to_terminal()
    transformers.logging.set_verbosity_error()  # its remarks are about what nobody here chose
    transformers.logging.disable_progress_bar()
    return compress(changes.of(RECIPES[name]()), inputs_of(name, checkpoint, data, table, out, loras), out, max_seconds)


def dry_run(
    name: Name,
    checkpoint: Path | None,
    data: Path | None,
    utilisation: float = 0.2,
    tflops: float | None = None,
    changes: Changes = Changes(),
) -> str:
    """What `start` would take, a line for each stage; nothing is written.

    Args:
        utilisation: Share of the device's speed that the networks reach.
        tflops: That speed, 10**12 operations a second; None to measure this device in matrix multiplications.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"got utilisation {utilisation}, expected a share of at most 1")
    if name == "tiny":
        loaded, pictures = tiny_inputs.checkpoint(), tiny_inputs.PICTURES
    elif checkpoint is None:
        raise ValueError(NO_CHECKPOINT.format(name))
    elif data is None and name != "stickers":
        raise ValueError(NO_DATA.format(checkpoint))
    else:
        loaded, pictures = load(checkpoint)[0], STICKERS if data is None else len(load_index(data))
    recipe = changes.of(RECIPES[name]())
    if loaded.schedule.prediction_type != "epsilon":
        recipe = replace(recipe, velocity=None)  # as `compress` skips it
    speed = matrix_speed() if tflops is None else tflops * 1e12
    return describe(rows_of(recipe, costs_of(loaded), pictures), speed, utilisation)


def inputs_of(
    name: Name,
    checkpoint: Path | None,
    data: Path | None,
    table: Path | None,
    out: Path,
    loras: Sequence[Lora] = (),
) -> Inputs:
    """What a recipe reads. Raises `ValueError` where it needs a checkpoint, or brings its own."""
    if name == "tiny":
        if checkpoint is not None or data is not None or loras:
            raise ValueError("got a checkpoint, --data or --lora, expected none: --recipe tiny makes its own")
        made = tiny_inputs.make(tiny_inputs.Config(), out / "tiny")
        return Inputs(made.checkpoint, made.data, table or made.table, made.weights)
    if checkpoint is None:
        raise ValueError(NO_CHECKPOINT.format(name))
    if data is None and name != "stickers":
        raise ValueError(NO_DATA.format(checkpoint))
    name_of_it = checkpoint.resolve().stem
    checkpoint = as_folder(checkpoint, loras, out / "checkpoint")
    side = side_of(checkpoint)
    if data is None:
        data = main_first(lambda: build(out / "data", side, cache=out / "packages"))
    elif (there := read_images(data, load_index(data)[:1]).shape[1]) != side:
        raise ValueError(
            f"got {data} with pictures of {there} pixels, expected {side}, which {checkpoint} draws; build the set "
            f"again with --size {side}"
        )
    return Inputs(checkpoint, data, table, name=name_of_it)


def side_of(checkpoint: Path) -> int:
    """Pixels along a side of the pictures that a checkpoint draws."""
    unet, vae = (read_json(checkpoint / part / "config.json") for part in ("unet", "vae"))
    return unet["sample_size"] * vae.get("patch_size", 1) * 2 ** (len(vae["block_out_channels"]) - 1)
