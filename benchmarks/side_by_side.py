"""A sheet of what checkpoints draw of the same prompts from the same seeds, the real pictures at the bottom.

    python benchmarks/side_by_side.py CHECKPOINT [CHECKPOINT ...] --data SET --out FILE [--split train] [--pictures 24]
        [--steps 8] [--scheduler dpm++] [--timestep-shift 4] [--guidance 4] [--json FILE]

Prompts are chosen by hash, none by hand, and printed in the order of the sheet; the UNet computes in bfloat16.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from record import write_record
from snapfusion.checkpoint import hash_of, load_checkpoint
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.pairs import Pair, load_index, read_images
from snapfusion.data.prompts import prompt_of
from snapfusion.sampling import Sampling, decode, draw_latents, pixels

COLUMNS, SIDE, GAP = 12, 96, 10


def drawn(folder: Path, pairs: list[Pair], shift: float, sampling: Sampling) -> list[NDArray[np.uint8]]:
    """A checkpoint's picture of every pair's prompt."""
    checkpoint = load_checkpoint(folder)
    checkpoint, images = replace(checkpoint, schedule=checkpoint.schedule.placed(shift)), list[NDArray[np.uint8]]()
    for first in range(0, len(pairs), COLUMNS):
        part = pairs[first : first + COLUMNS]
        latents = draw_latents(checkpoint, [*map(prompt_of, part)], [*map(seed_of, part)], sampling)
        images += list(pixels(decode(checkpoint.vae, latents)))
    return images


def sheet_of(levels: list[list[NDArray[np.uint8]]]) -> Image.Image:
    """Columns of pictures: in each, from above, one of every level."""
    height, rows = len(levels) * SIDE + GAP, -(-len(levels[0]) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * height), "white")
    for level, images in enumerate(levels):
        for place, image in enumerate(images):
            small = Image.fromarray(np.ascontiguousarray(image)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (place % COLUMNS * SIDE, place // COLUMNS * height + level * SIDE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="a built sticker set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subset", choices=("core", "full"), default="core", help="what the base was trained on")
    parser.add_argument("--split", choices=("train", "cells", "concepts"), default="train")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--scheduler", choices=("ddim", "dpm++", "euler"), default="dpm++")
    parser.add_argument("--timestep-shift", type=float, default=4.0)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    index = load_index(options.data, core=options.subset == "core")
    pairs = chosen([pair for pair in index if pair.split == options.split], options.pictures, "side by side")
    sampling, rows = Sampling(options.steps, options.guidance, options.scheduler, bf16=True), list[dict[str, Any]]()
    levels: list[list[NDArray[np.uint8]]] = []
    for folder in options.checkpoints:
        start = time.perf_counter()
        levels.append(drawn(folder, pairs, options.timestep_shift, sampling))
        rows.append({"name": hash_of(folder)[:12], "seconds": time.perf_counter() - start})
    sheet_of([*levels, list(read_images(options.data, pairs))]).save(options.out, quality=82)
    print("\n".join(prompt_of(pair) for pair in pairs))
    protocol = {"split": options.split, "steps": options.steps, "scheduler": options.scheduler}
    write_record(options.json, {**protocol, "timestep_shift": options.timestep_shift}, rows)


if __name__ == "__main__":
    main()
