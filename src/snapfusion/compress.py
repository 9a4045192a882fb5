"""A smaller, faster model from a checkpoint.

    checkpoint - profile -> table -+
    checkpoint ------------ evolve-+-> unet - distill_steps -> unet8 --+
    checkpoint - distill_decoder ---------> decoder -------------------+- export -> bundle - evaluate -> report

`compress` tells it in that order. Every stage has a folder below RUN and is done once: to go on after a kill or a
pause, call it again. A checkpoint that predicts noise learns to predict velocity first (Eq. 6).
"""

import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from snapfusion.checkpoint import load_schedule, load_unet
from snapfusion.processes import go_on_alone, rank
from snapfusion.stage_folder import PausedError
from snapfusion.stages.distill_decoder import stage as distill_decoder
from snapfusion.stages.distill_steps import stage as distill_steps
from snapfusion.stages.distill_steps import to_velocity
from snapfusion.stages.distill_steps.plan import direct, run_plan
from snapfusion.stages.evaluate import stage as evaluate
from snapfusion.stages.evolve import stage as evolve
from snapfusion.stages.export import stage as export
from snapfusion.stages.profile import stage as profile
from snapfusion.table import load_table

log = logging.getLogger(__name__)

REPORT = "report.html"
Config = TypeVar("Config", bound=object)


@dataclass(frozen=True)
class Recipe:
    """A whole run as one value: how each stage is done; None for one that is not asked for."""

    velocity: to_velocity.VelocityConfig | None
    """For checkpoints that predict noise."""
    profile: profile.Config
    evolve: evolve.Config | None
    distill_steps: distill_steps.Config | None
    distill_decoder: distill_decoder.Config | None
    export: export.Config
    evaluate: evaluate.Config | None
    budget: float = 0.5
    """Share of the UNet's milliseconds that evolution may keep, where its config names no budget."""

    @property
    def places_steps(self) -> bool:
        """Whether something is drawn in steps that are moved, which steps that were distilled cannot be."""
        decoder = self.distill_decoder is not None and self.distill_decoder.timestep_shift is not None
        return decoder or self.export.timestep_shift is not None


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    checkpoint: Path
    """A folder in diffusers' layout."""
    data: Path
    """A set of `snapfusion data pairs` or `snapfusion data stickers`."""
    table: Path | None = None
    """Prices measured elsewhere, on a phone for one; None to measure this device."""
    cache: Path | None = None
    """Of the networks that judge: see `snapfusion.metrics.weights`."""
    name: str | None = None
    """What the bundle is called where the recipe does not say."""


@dataclass(frozen=True)
class Result:
    """What a run leaves."""

    bundle: Path
    report: Path | None

    def describe(self) -> str:
        """Where to look."""
        return "\n".join(str(path) for path in (self.bundle, self.report) if path is not None)


def compress(recipe: Recipe, inputs: Inputs, out: Path, max_seconds: float = math.inf) -> Result:
    """Make the bundle `out / "bundle"`, and `out / "report.html"` that holds it against the checkpoint.

    Raises:
        ValueError: an input is missing or broken, or a folder of `out` was made from something else.
        PausedError: `max_seconds` are over; the same call goes on.
    """
    if recipe.distill_steps is not None and recipe.export.timestep_shift is not None:
        raise ValueError(
            f"got steps to distil and an export with timestep_shift {recipe.export.timestep_shift!r}, expected one of "
            "them: distilled steps stay where they were learned"
        )
    if (known := load_schedule(inputs.checkpoint).distilled_steps) and recipe.places_steps:
        raise ValueError(
            f"got {inputs.checkpoint}, distilled for {known} steps, and a recipe that places its own, expected a "
            "checkpoint that was distilled for none: distilled steps stay where they were learned"
        )
    left = Deadline(max_seconds)
    base, data = inputs.checkpoint, inputs.data
    if recipe.velocity is not None and load_schedule(base).prediction_type == "epsilon":
        base = to_velocity.run(left.given("velocity", recipe.velocity), base, data, out / "velocity").checkpoint
    table = profile.run(left.given("profile", recipe.profile), base, out / "profile", inputs.table).table

    unet = base
    if recipe.evolve is not None:
        config = within(recipe.budget, left.given("evolve", recipe.evolve), table, base)
        evolved = evolve.run(config, base, table, data, out / "evolve", inputs.cache)
        unet = out / "evolve" / evolved.members[-1].name
    if recipe.distill_steps is not None:
        plan = direct(left.given("distill_steps", recipe.distill_steps))
        legs = run_plan(plan, {"base": base, "evolved": unet}, data, out / "distill_steps")
        unet = legs[plan[-1].name].checkpoint
    decoder = base
    if recipe.distill_decoder is not None:
        config = left.given("distill_decoder", recipe.distill_decoder)
        decoder = distill_decoder.run(config, base, data, out / "distill_decoder", cache=inputs.cache).checkpoint

    if rank() != 0:  # the rest trains nothing: the main process ends it alone
        return Result(out / "bundle", out / REPORT if recipe.evaluate else None)
    go_on_alone()
    packing = replace(recipe.export, name=recipe.export.name or inputs.name)
    bundle = export.run(left.given("export", packing), unet, out / "bundle", decoder).bundle
    if recipe.evaluate is None:
        return Result(bundle, None)
    models, sources = [inputs.checkpoint, bundle], evaluate.Sources(data)
    report = evaluate.run(left.given("evaluate", recipe.evaluate), models, sources, out / "evaluate", inputs.cache)
    return Result(bundle, report.write_page(out / REPORT))


def within(budget: float, config: evolve.Config, table: Path, checkpoint: Path) -> evolve.Config:
    """The config with a budget in milliseconds: a share of what the checkpoint's UNet costs, if it names none."""
    if config.budget_ms or config.budget_mb:
        return config
    price = load_table(table).price(load_unet(checkpoint).architecture)
    return replace(config, budget_ms=(round(budget * price.milliseconds, 3),))


class Deadline:
    """When a run is to pause. A stage that trains does so itself, within; any other is not begun any more."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def given(self, stage: str, config: Config) -> Config:
        """A stage's config, with the time that is left, and word that it begins. Raises `PausedError` where there is
        none."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise PausedError(f"paused before {stage}; run the same command to go on")
        log.info("%s", stage)
        return replace(config, max_seconds=seconds) if hasattr(config, "max_seconds") else config  # pyright: ignore
