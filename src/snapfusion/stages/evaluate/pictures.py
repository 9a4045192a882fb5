"""Draws the pictures that are measured, and keeps them: a stopped evaluation goes on where it was."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from snapfusion.data.pairs import Pair
from snapfusion.data.prompts import prompt_of
from snapfusion.metrics.features import Images
from snapfusion.stages.evaluate.model import Model
from snapfusion.stages.evaluate.protocol import seed_of


def draw_pictures(model: Model, pairs: Sequence[Pair], guidance: float, folder: Path, batch: int) -> Iterator[Images]:
    """A picture for each pair's prompt, in batches `[<= batch, H, W, 3]`; those in `folder` are not drawn again."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = range(0, len(pairs), batch)
    for start in tqdm(batches, desc=f"drawing, guidance {guidance:g}", unit="batch", disable=None):
        part = pairs[start : start + batch]
        missing = [pair for pair in part if not file_of(pair, folder).exists()]
        drawn = model.draw([prompt_of(pair) for pair in missing], [seed_of(pair) for pair in missing], guidance)
        for pair, image in zip(missing, drawn, strict=True):
            partial = file_of(pair, folder).with_suffix(".part")
            Image.fromarray(image).save(partial, "PNG")
            partial.replace(file_of(pair, folder))
        yield np.stack([np.asarray(Image.open(file_of(pair, folder))) for pair in part])


def file_of(pair: Pair, folder: Path) -> Path:
    """Where the picture of a pair's prompt is kept."""
    return folder / f"{pair.key}.png"
