"""The latents on which two decoders are compared: drawn by the base from prompts, kept on disk a batch a file."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from snapfusion.checkpoint import Checkpoint
from snapfusion.data.pairs import load_index
from snapfusion.data.prompts import prompt_of
from snapfusion.progress import progress
from snapfusion.sampling import Sampling, draw_latents
from snapfusion.stage_folder import PausedError
from snapfusion.weights import load_whole, save_whole

log = logging.getLogger(__name__)

Split = Literal["held-out", "train"]
HELD_OUT = 0.1
"""Share of the prompts that only held-out latents are drawn from."""
LOGGED = 20  # batches between two lines of the log


@dataclass(frozen=True)
class Plan:
    """Which latents there are to be: the held-out ones are numbers 0 to `held_out` - 1, those to train on follow."""

    train: int
    held_out: int
    batch: int
    sampling: Sampling
    seed: int

    def batches(self) -> Iterator[tuple[Split, range]]:
        """Numbers of the latents that are drawn together."""
        total = self.held_out + self.train
        splits: dict[Split, range] = {"held-out": range(self.held_out), "train": range(self.held_out, total)}
        for split, numbers in splits.items():
            for start in range(0, len(numbers), self.batch):
                yield split, numbers[start : start + self.batch]


def read_prompts(source: Path, core: bool = False) -> list[str]:
    """The prompts of a text file, one a line, or of the training pictures of a sticker set; each of them once.

    With `core`, those of the small set alone.

    Raises:
        ValueError: there are not at least two.
    """
    if source.is_dir():
        lines = [prompt_of(pair) for pair in load_index(source, core) if pair.split == "train"]
    else:
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
    prompts = list(dict.fromkeys(line for line in lines if line))
    if len(prompts) < 2:
        raise ValueError(f"got {len(prompts)} prompts in {source}, expected at least two, one a line: one is held out")
    return prompts


def divide(prompts: list[str], seed: int) -> dict[Split, list[str]]:
    """Prompts to train on and a tenth (at least one) that are held out, both in an order that the seed gives."""
    order = [prompts[place] for place in np.random.default_rng(seed).permutation(len(prompts))]
    held_out = max(1, round(HELD_OUT * len(order)))
    return {"held-out": order[:held_out], "train": order[held_out:]}


def draw(checkpoint: Checkpoint, prompts: dict[Split, list[str]], plan: Plan, folder: Path, until: float) -> None:
    """Write the latents that `folder` lacks; the prompts take turns, and latent n starts from noise of (seed, n).

    Raises:
        PausedError: `time.monotonic()` has passed `until`; at least one batch more is there than before.
    """
    batches = list(plan.batches())
    missing = [batch for batch in batches if not file_of(*batch, folder).exists()]
    first = len(batches) - len(missing)
    with progress("latents", first, len(batches)) as show:
        for done, (split, numbers) in enumerate(missing, first):
            if done > first and time.monotonic() > until:
                raise PausedError(f"latents paused at batch {done} of {len(batches)}; run the same command to go on")
            asked = [prompts[split][number % len(prompts[split])] for number in numbers]
            seeds = [noise_seed(plan.seed, number) for number in numbers]
            latents = draw_latents(checkpoint, asked, seeds, plan.sampling)
            save_whole({"latents": latents.half().cpu()}, file_of(split, numbers, folder), {})
            show(done + 1)
            if (done + 1) % LOGGED == 0:
                log.info("latents  %d of %d", numbers[-1] + 1, plan.held_out + plan.train)


def file_of(split: Split, numbers: range, folder: Path) -> Path:
    """Where a batch is kept; names are in the order of their latents."""
    return folder / f"{split}-{numbers[0]:07}.safetensors"


def noise_seed(seed: int, number: int) -> int:
    """The seed of the noise that latent `number` starts from, 32 bits."""
    return int(np.random.default_rng((seed, number)).integers(1 << 32))


def load(folder: Path, split: Split) -> Tensor:
    """The latents of a split, in order: `[N, C, h, w]` float16, scaled."""
    return torch.cat([load_whole(file)[1]["latents"] for file in sorted(folder.glob(f"{split}-*.safetensors"))])
