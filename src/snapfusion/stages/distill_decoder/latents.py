"""The latents on which two decoders are compared: drawn by the base from prompts, kept on disk a batch a file."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from snapfusion.checkpoint import Checkpoint
from snapfusion.data.pairs import load_index
from snapfusion.data.prompts import prompt_of
from snapfusion.processes import from_main
from snapfusion.progress import progress
from snapfusion.sampling import Sampling, draw_latents
from snapfusion.stage_folder import PausedError
from snapfusion.weights import load_whole, write_weights

Split = Literal["held-out", "train"]
HELD_OUT = 0.1
"""Share of the prompts that only held-out latents are drawn from."""


@dataclass(frozen=True)
class Plan:
    """Which latents there are to be: the held-out ones are numbers 0 to `held_out` - 1, those to train on follow."""

    train: int
    held_out: int
    batch: int
    sampling: Sampling
    timestep_shift: float | None
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

    Raises what `complete` does.
    """
    batches = list(plan.batches())

    def drawn(number: int) -> Tensor:
        split, numbers = batches[number]
        asked = [prompts[split][latent % len(prompts[split])] for latent in numbers]
        return draw_latents(checkpoint, asked, [noise_seed(plan.seed, latent) for latent in numbers], plan.sampling)

    complete("latents", [file_of(*batch, folder) for batch in batches], drawn, until)


def complete(name: str, files: Sequence[Path], drawn: Callable[[int], Tensor], until: float) -> None:
    """Write those of `files` that are missing, the n-th with what `drawn(n)` gives as float16; whole or not at all.

    Raises:
        ValueError: a tensor is too large for float16, or not finite.
        PausedError: `time.monotonic()` has passed `until`; at least one file more is there than before.
    """
    missing = [number for number, file in enumerate(files) if not file.exists()]
    first = len(files) - len(missing)
    with progress(name, first, len(files)) as show:
        for done, number in enumerate(missing, first):
            if done > first and from_main(lambda: time.monotonic() > until):
                raise PausedError(f"{name} paused at batch {done} of {len(files)}; run the same command to go on")
            write_weights({name: drawn(number)}, files[number], torch.float16)
            show(done + 1)


def file_of(split: Split, numbers: range, folder: Path) -> Path:
    """Where a batch is kept; names are in the order of their latents."""
    return folder / f"{split}-{numbers[0]:07}.safetensors"


def noise_seed(seed: int, number: int) -> int:
    """The seed of the noise that latent `number` starts from, 32 bits."""
    return int(np.random.default_rng((seed, number)).integers(1 << 32))


def load(folder: Path, split: Split) -> Tensor:
    """The latents of a split, in order: `[N, C, h, w]` float16, scaled."""
    return torch.cat([load_whole(file)[1]["latents"] for file in sorted(folder.glob(f"{split}-*.safetensors"))])
