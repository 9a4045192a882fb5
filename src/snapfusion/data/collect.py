"""Anybody's captioned pictures as a set that stages read: streamed, made square, split, written as the sticker set is.

index.jsonl   one row a picture (see `Pair`), without a style; its label is the caption
shards/*.tar  KEY.png and KEY.json side by side
card.json     what it was made from, how many there are, how many were broken
"""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from snapfusion.data.pairs import INDEX, Pair
from snapfusion.data.sources import open_source
from snapfusion.data.stickers import fraction, write_shards
from snapfusion.data.stream import Config as StreamConfig
from snapfusion.data.stream import PairStream, square
from snapfusion.json_file import read_json, write_json

CARD = "card.json"


@dataclass(frozen=True)
class Config:
    """What of a source makes the set."""

    size: int = 512
    """Side of the square pictures, pixels."""
    pictures: int | None = None
    """At most so many; by default all."""
    held_out: float = 0.05
    """Share that nothing is trained on."""
    corrupt: int = 100
    """How many may be broken before it is an error."""
    seed: int = 0
    """Of the order in which they are taken."""
    licence: str = "unknown"
    """Of the pictures, for the set's rows."""


def collect(source: str, out: Path, config: Config = Config()) -> str:
    """Write the set to folder `out`; one that was made of the same is left alone. Returns a line on it.

    `source` is what `sources.open_source` understands. Raises `ValueError` for a source that is none, for too many
    broken pictures, and where `out` holds anything else.
    """
    if not 16 <= config.size <= 2048 or not 0 < config.held_out < 1 or (config.pictures or 1) < 1:
        expected = "expected size 16 to 2048, held_out between 0 and 1, pictures at least 1"
        raise ValueError(f"got {config}, {expected}")
    recipe = {"source": source, **asdict(config)}
    if (out / CARD).is_file() and read_json(out / CARD).get("recipe") == recipe:
        return describe(out)
    if out.exists():
        raise ValueError(f"got {out}, which holds something else, expected a new folder; name another --out")
    stream = PairStream(open_source(source), StreamConfig(config.seed, corrupt=config.corrupt))
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill left
    (partial / "shards").mkdir(parents=True)
    pairs = write_shards(tqdm(_rows(stream, source, config), unit="picture", disable=None), partial, "pairs")
    if not pairs:
        shutil.rmtree(partial)
        last = f"; the last of those left out: {stream.broken}" if stream.broken else ""
        raise ValueError(f"got no picture with a caption in {source}, expected some{last}")
    with (partial / INDEX).open("w", encoding="utf-8") as index:
        index.writelines(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    held_out = sum(pair.split != "train" for pair in pairs)
    figures = {"pictures": len(pairs), "held_out": held_out, "corrupt": stream.position.corrupt}
    write_json(partial / CARD, {"recipe": recipe, **figures})
    partial.rename(out)
    return describe(out)


def describe(out: Path) -> str:
    """A line on a set."""
    card = read_json(out / CARD)
    broken = f"; {card['corrupt']} broken ones left out" if card["corrupt"] else ""
    return f"{out}: {card['pictures']} pictures, {card['held_out']} of them held out{broken}"


def _rows(stream: PairStream, source: str, config: Config) -> Iterator[tuple[Pair, tuple[bytes, None]]]:
    for number, sample in enumerate(stream.epoch()):
        if number == config.pictures:
            return
        key, png = f"{number:08}", io.BytesIO()
        name = sample.key.rpartition(": ")[2]  # without the shard, which may lie elsewhere tomorrow
        Image.fromarray(square(sample.image, config.size)).save(png, "PNG", compress_level=6)
        pair = Pair(
            key=key, code=key, label=" ".join(sample.caption.split()), tags=(), base=key, style="", family="",
            colour=None, core=True, split="cells" if fraction("pair", name) < config.held_out else "train",
            source=source, licence=config.licence, shard="",
        )  # fmt: skip
        yield pair, (png.getvalue(), None)
