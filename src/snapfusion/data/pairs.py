"""Pictures with captions, read back from a built set (`stickers.py`, `collect.py`)."""

import hashlib
import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

INDEX = "index.jsonl"


@dataclass(frozen=True)
class Pair:
    """One row of the index."""

    key: str  # unique, also the file's name in its shard
    code: str  # Unicode code points of the concept
    label: str  # "red apple"; the whole caption where there is no style
    tags: tuple[str, ...]
    base: str  # variants of one thing share it; what the splits hash
    style: str  # see `styles.HANDS`; "" for pictures that are not ours
    family: str  # one hand's art
    colour: str | None  # "red", where the picture has one colour
    core: bool  # in the small set
    split: str  # train | cells | concepts
    source: str  # npm package @ version
    licence: str
    shard: str  # path of the tar, below the set's folder


KEY, SHARD = re.compile(r"[\w-][\w.-]*"), re.compile(r"shards/[\w-][\w.-]*\.tar")


def load_index(folder: Path, core: bool = False) -> list[Pair]:
    """Every row of a built set, in shard order; with `core`, those of the small set.

    Raises:
        ValueError: the folder holds no finished set.
    """
    index = folder / INDEX
    if not index.exists():
        raise ValueError(
            f"got {folder} without {INDEX}, expected a set; build one: snapfusion data stickers --out {folder}, or "
            "data pairs of your own pictures"
        )
    try:
        with index.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        pairs = [Pair(**{**row, "tags": tuple(row["tags"])}) for row in rows]
        for pair in pairs:  # both become paths
            if not KEY.fullmatch(pair.key) or not SHARD.fullmatch(pair.shard):
                raise ValueError(f"key {pair.key!r} in shard {pair.shard!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"got {index} with rows of no set ({error}), expected this version's; build it again"
        ) from error
    return [pair for pair in pairs if pair.core] if core else pairs


def hash_of_set(folder: Path) -> str:
    """SHA-256 of a built set's rows and of the sizes of its shards: the same rows may have other pictures."""
    sizes = {file.name: file.stat().st_size for file in sorted((folder / "shards").glob("*.tar"))}
    return hashlib.sha256((folder / INDEX).read_bytes() + json.dumps(sizes).encode()).hexdigest()


def read_images(folder: Path, pairs: Sequence[Pair]) -> NDArray[np.uint8]:
    """The pictures of some rows, in their order: `[N, H, W, 3]`. Raises `ValueError` where one is missing or broken."""
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for position, pair in enumerate(pairs):
        places[pair.shard][f"{pair.key}.png"] = position
    images: list[NDArray[np.uint8] | None] = [None] * len(pairs)
    for shard, wanted in places.items():
        try:
            with tarfile.open(folder / shard, "r:") as tar:
                for member in tar:
                    if member.name in wanted:
                        handle = tar.extractfile(member)
                        assert handle is not None
                        image = Image.open(io.BytesIO(handle.read())).convert("RGB")
                        images[wanted[member.name]] = np.asarray(image)
        except (tarfile.TarError, OSError) as error:  # also what Pillow says of no picture
            raise ValueError(f"{folder / shard}: expected a tar of pictures ({error}); build the set again") from error
    missing = [pair.key for pair, image in zip(pairs, images, strict=True) if image is None]
    if missing:
        raise ValueError(f"got no picture {missing[0]}.png in {folder}, expected it in its shard; build the set again")
    return np.stack([image for image in images if image is not None])
