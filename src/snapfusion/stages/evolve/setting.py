"""What all rounds of an evolution share: the base, the data, the trial, the prices."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from snapfusion.bench import open_bench
from snapfusion.checkpoint import Checkpoint, load_checkpoint
from snapfusion.data.choice import chosen
from snapfusion.data.pairs import load_index
from snapfusion.denoising import draw_batch
from snapfusion.fit import device_of_run
from snapfusion.json_file import read_json, write_json
from snapfusion.latents import Cache, Encoders, Shares, load_caches
from snapfusion.metrics import judge_a
from snapfusion.metrics.estimate import Estimate
from snapfusion.metrics.features import VectorStore
from snapfusion.metrics.weights import default_cache
from snapfusion.sampling import Sampling
from snapfusion.stages.evolve.config import Config
from snapfusion.stages.evolve.robust import Data
from snapfusion.stages.evolve.search import Goal
from snapfusion.stages.evolve.trial import (
    Trial,
    denoising_trial,
    drawing_trial,
    fair_prompts,
    output_trial,
    trajectory_trial,
)
from snapfusion.table import Table

CACHE, BASE = "cache", "base.json"
ROWS = 64  # latents of a batch, where nothing is drawn


@dataclass(frozen=True)
class Sources:
    """Where everything is read from."""

    checkpoint: Path
    data: Path
    table: Table
    cache: Path | None
    """Of the judge's networks: see `snapfusion.metrics.weights`."""


@dataclass(frozen=True)
class Setting:
    """What does not change from round to round."""

    config: Config
    sources: Sources
    goal: Goal
    base: Checkpoint
    data: Data
    trial: Trial
    quality: Estimate
    """The base's."""
    deadline: float
    """When to pause, by `time.monotonic`."""

    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()


def prepare(config: Config, sources: Sources, goal: Goal, folder: Path) -> Setting:
    """Load the base, cache its latents in `folder / "cache"`, open the judge, and see how good the base is."""
    deadline = time.monotonic() + config.max_seconds
    base = load_checkpoint(sources.checkpoint)
    device = device_of_run()
    for network in (base.text_encoder, base.unet, base.vae):
        network.to(device).requires_grad_(False)  # pyright: ignore[reportArgumentType]
    train, held_out = load_latents(config, base, sources.data, folder / CACHE)
    data = Data(train, base.schedule, config.batch, config.seed, config.shares, config.noise_shift)
    sampled = config.score in ("drawing", "trajectory")
    trial = drawn(config, base, sources) if sampled else predicted(config, base, held_out)
    if not (folder / BASE).is_file():
        write_json(folder / BASE, {"quality": asdict(trial.quality(base.unet)), "protocol": trial.protocol})
    quality = Estimate(**read_json(folder / BASE)["quality"])
    return Setting(config, sources, goal, base, data, trial, quality, deadline)


def load_latents(config: Config, base: Checkpoint, data: Path, folder: Path) -> tuple[Cache, Cache]:
    """The pictures to train on and the held-out ones, as latents, on the UNet's device."""
    encoders = Encoders(base.vae, base.text_encoder, base.tokenizer, base.length)
    train, cells = load_caches(folder, data, config.subset == "core", encoders, config.variants, config.seed)
    return train.to(base.unet.device), cells.to(base.unet.device)


def drawn(config: Config, base: Checkpoint, sources: Sources) -> Trial:
    """Pictures that judge A looks at, or latents that are held against the base's."""
    pairs = load_index(sources.data, core=config.subset == "core")
    sampling = Sampling(config.steps, config.guidance, bf16=config.precision == "bf16")
    if config.score == "trajectory":
        asked = chosen([pair for pair in pairs if pair.split == "train"], config.prompts, "evolve")
        return trajectory_trial(base, asked, sampling, config.draw_batch)
    store = VectorStore((sources.cache or default_cache()) / "vectors.sqlite")
    bench = open_bench(judge_a, sources.data, pairs, store, base.unet.device.type, sources.cache)
    return drawing_trial(base, bench, fair_prompts(bench, pairs, config.prompts), sampling, config.draw_batch)


def predicted(config: Config, base: Checkpoint, held_out: Cache) -> Trial:
    """Losses on real latents that the base was not trained on."""
    shift, shares = config.score_shift or config.noise_shift, Shares(mirrored=config.mirrored)
    batches = [
        draw_batch(held_out, base.schedule, min(ROWS, config.latents - drawn), config.seed, step, shares, shift=shift)
        for step, drawn in enumerate(range(0, config.latents, ROWS))
    ]
    made = denoising_trial if config.score == "denoising" else output_trial
    return made(base.unet, batches, config.precision == "bf16")
