"""A sticker set of coloured blocks, a backbone that sees blocks, and a model that copies or draws at random."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from snapfusion.data.choice import seed_of
from snapfusion.data.pairs import INDEX, Pair, load_index
from snapfusion.data.prompts import prompt_of
from snapfusion.metrics.features import Backbone, backbone
from snapfusion.stages.evaluate.model import Model

THINGS = ("fox", "apple", "ghost", "boat", "castle", "drum", "cactus", "rocket", "spoon", "owl", "cloud", "chair")


class Pools(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(image, 6).flatten(1)


def small_backbone(device: str, cache: Path | None) -> Backbone:
    return backbone("pools", Pools(), 16, "cpu:0", lambda image: image / 128 - 1)


def pair_of(thing: str, variant: int, style: str) -> Pair:
    return Pair(
        key=f"{thing}{variant}_{style}", code=f"{thing}{variant}", label=f"{thing} number {variant}", tags=(),
        base=thing, style=style, family=style, colour=None, core=variant < 4,
        split="cells" if variant == 3 else "train", source="made up", licence="CC0-1.0", shard="shards/0.tar",
    )  # fmt: skip


def picture_of(pair: Pair, size: int = 32) -> np.ndarray:
    """Blocks whose colours say what it is, brighter in one style than in the other, noisy in every variant.

    `size` is the picture's width in pixels, a multiple of 4.
    """
    block = np.random.default_rng(THINGS.index(pair.base)).uniform(0, 160, (4, 4, 3))
    noise = np.random.default_rng(seed_of(pair)).normal(0, 12, (4, 4, 3))
    image = block + noise + (60 if pair.style == "3d" else 0)
    return image.clip(0, 255).astype(np.uint8).repeat(size // 4, axis=0).repeat(size // 4, axis=1)


def sticker_set(folder: Path, things: Sequence[str] = THINGS, size: int = 32, core: bool = False) -> Path:
    """Write the set: things in 2 styles, 3 variants to train with and 1 held out in `core`, 1 only in the full set.

    With `core`, there is nothing else in it.
    """
    pairs = [pair_of(thing, n, style) for thing in things for n in range(5) for style in ("3d", "silhouette")]
    pairs = [pair for pair in pairs if pair.core or not core]
    (folder / "shards").mkdir(parents=True)
    with tarfile.open(folder / "shards" / "0.tar", "w") as tar:
        for pair in pairs:
            png = io.BytesIO()
            Image.fromarray(picture_of(pair, size)).save(png, "PNG")
            entry = tarfile.TarInfo(f"{pair.key}.png")
            entry.size = len(png.getvalue())
            tar.addfile(entry, io.BytesIO(png.getvalue()))
    (folder / INDEX).write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))
    return folder


class Copier:
    """Draws the training picture of its prompt at guidance 3, and random blocks at any other; dies after `pictures`."""

    def __init__(self, data: Path, pictures: int = 10**6):
        self.pairs = {prompt_of(pair): pair for pair in load_index(data)}
        self.left = pictures
        self.asked: list[tuple[str, float]] = []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], guidance: float) -> Iterator[np.ndarray]:
        for prompt, seed in zip(prompts, seeds, strict=True):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.asked.append((self.pairs[prompt].key, guidance))
            assert seed == seed_of(self.pairs[prompt])
            blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            yield picture_of(self.pairs[prompt]) if guidance == 3 else blocks.repeat(8, axis=0).repeat(8, axis=1)


def model(draw: Copier, name: str = "copier") -> Model:
    return Model(name, "0" * 64, "none", 50, "ddim", 32, draw, Path("nowhere"), None)
