"""Builds the sticker set: concepts x styles, rendered on white, captioned, split, written as WebDataset shards.

The folder it writes:

    index.jsonl          one row a picture (see `Pair`), in shard order
    shards/*.tar         KEY.png and KEY.json side by side, as WebDataset reads them
    card.json            counts by style and split, what was dropped and why, the packages with versions and licences
    contact-sheet.webp   a few concepts in every style

The same packages give the same bytes: files carry no time, no owner and no process state.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from snapfusion.data.colours import colour_of
from snapfusion.data.concepts import Concept, load_concepts
from snapfusion.data.packages import CLDR, EMOJIBASE, Package
from snapfusion.data.pairs import INDEX, Pair, read_images
from snapfusion.data.styles import HANDS, Hand, pictures

PICTURES_PER_SHARD = 1000
CONCEPTS_HELD_OUT = 0.055  # share of the bases that no style of `train` shows
CELLS_HELD_OUT = 0.055  # share of the (base, family) pairs that `train` lacks
SPLITS = ("train", "cells", "concepts")
SHEET_LABELS = ("red apple", "fox", "rocket", "castle", "sunflower", "ghost", "guitar", "hamburger")


def build(out: Path, size: int = 256, cache: Path | None = None, workers: int | None = None) -> Path:
    """Write the sticker set to `out` and return it; a finished set of the same packages and size is left alone.

    Args:
        out: the folder; must not exist, be empty, or hold a set that this function built.
        size: side of the square pictures, pixels.
        cache: where the npm archives are kept; by default `out.parent / "packages"`.
        workers: rendering processes; by default one a core.

    Raises:
        ValueError: bad size, foreign files in `out`, npm missing, or a package that is not the pinned one.
    """
    if not 16 <= size <= 1024:
        raise ValueError(f"got size {size}, expected 16 to 1024 pixels; 256 is what the stickers base was trained on")
    recipe = {"size": size, "packages": [asdict(package) for package in packages()], "format": 3}
    card_file = out / "card.json"
    if card_file.exists() and json.loads(card_file.read_text(encoding="utf-8"))["recipe"] == recipe:
        return out
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"got {out} with other files in it, expected an empty or a new folder; name another --out")
    cache = cache or out.parent / "packages"
    concepts, dropped = load_concepts(cache)
    drawings = {hand.source: pictures(hand, concepts, cache) for hand in HANDS}
    pairs = list(split_pairs(concepts, drawings))

    partial = out.with_name(f".{out.name}.partial")
    (partial / "shards").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        sources = ((drawings[pair.source][pair.code], size) for pair in pairs)
        rendered = pool.map(render, sources, chunksize=16)
        progress = tqdm(
            zip(pairs, rendered, strict=True), total=len(pairs), unit="picture", desc="rendering", disable=None
        )
        pairs = write_shards(progress, partial)
    with (partial / INDEX).open("w", encoding="utf-8") as index:
        index.writelines(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    contact_sheet(partial, pairs).save(partial / "contact-sheet.webp", quality=80)
    text = json.dumps(card(recipe, pairs, dropped), indent=1, ensure_ascii=False) + "\n"
    (partial / "card.json").write_text(text, encoding="utf-8")
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return out


def packages() -> list[Package]:
    """Every package the set is made of."""
    return [EMOJIBASE, CLDR, *(hand.package for hand in HANDS)]


# ---------------------------------------------------------------------------------------------------------------------
# Splits: by hash, fixed for ever, by base concept and art family.


def fraction(*words: str) -> float:
    """A number in 0..1 that depends on the words alone."""
    return int(hashlib.sha256("|".join(words).encode()).hexdigest()[:12], 16) / 16**12


def split_of(base: str, family: str, families: set[str]) -> str:
    """`concepts`, `cells` or `train`, for one base concept in one family; `families` are all that draw the base.

    A concept is held out only where several families draw it, and never every family of a base as cells.
    """
    if len(families) >= 3 and fraction("concept", base) < CONCEPTS_HELD_OUT:
        return "concepts"
    stays = max(families, key=lambda name: fraction("cell", base, name))
    return "cells" if family != stays and fraction("cell", base, family) < CELLS_HELD_OUT else "train"


def split_pairs(concepts: list[Concept], drawings: dict[str, dict[str, bytes]]) -> Iterator[Pair]:
    """One `Pair` for each concept and each hand that draws it, in a fixed order; `drawings` by the hands' source.

    Two hands may draw in one style. What one of them has in `cells` is not taken from the other, for its sentence would
    be trained with.
    """
    families: dict[str, set[str]] = defaultdict(set)
    for hand in HANDS:
        for concept in concepts:
            if concept.code in drawings[hand.source]:
                families[concept.base].add(hand.family)
    splits = {
        (base, hand.family, hand.style): split_of(base, hand.family, drawn)
        for base, drawn in families.items()
        for hand in HANDS
        if hand.family in drawn
    }
    shown = {split: {(base, style) for (base, _, style), one in splits.items() if one == split} for split in SPLITS}
    twice = shown["train"] & shown["cells"]
    taught = {base for base, _ in shown["train"] - twice}
    for concept in concepts:
        for hand in HANDS:
            if concept.code in drawings[hand.source]:
                split = splits[concept.base, hand.family, hand.style]
                # Left out of `train`; of `cells`, where nothing else teaches the thing.
                if (concept.base, hand.style) in twice and split == ("train" if concept.base in taught else "cells"):
                    continue
                yield Pair(
                    key=f"{concept.code}.{hand.name}".replace(".", "_"),
                    code=concept.code,
                    label=concept.label,
                    tags=concept.tags,
                    base=concept.base,
                    style=hand.style,
                    family=hand.family,
                    colour=None,  # known once it is drawn
                    core=concept.core and hand.core,
                    split=split,
                    source=hand.source,
                    licence=hand.package.licence,
                    shard="",
                )


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def render(source: tuple[bytes, int]) -> tuple[bytes, str | None]:
    """SVG or WebP bytes, side in pixels -> PNG bytes of the drawing on white, and its colour word if it has one."""
    data, size = source
    if data.lstrip()[:1] == b"<":
        import resvg_py  # heavy and only needed where SVGs are drawn

        svg = data.decode()
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if max(image.size) != size:
        image = ImageOps.contain(image, (size, size), Image.Resampling.LANCZOS)
    page = Image.new("RGBA", (size, size), "white")
    page.alpha_composite(image, ((size - image.width) // 2, (size - image.height) // 2))
    picture = page.convert("RGB")
    colour = colour_of(np.asarray(picture))
    png = io.BytesIO()
    picture.save(png, "PNG", compress_level=6)
    return png.getvalue(), None if colour is None else colour.word


def write_shards(
    rendered: Iterable[tuple[Pair, tuple[bytes, str | None]]], folder: Path, name: str = "stickers"
) -> list[Pair]:
    """Write the pictures in order, `PICTURES_PER_SHARD` to a tar, and return their completed rows."""
    rows: list[Pair] = []
    remaining = iter(rendered)
    while batch := list(islice(remaining, PICTURES_PER_SHARD)):
        shard = f"shards/{name}-{len(rows) // PICTURES_PER_SHARD:05d}.tar"
        with tarfile.open(folder / shard, "w", format=tarfile.USTAR_FORMAT) as tar:
            for pair, (png, colour) in batch:
                row = Pair(**{**asdict(pair), "colour": colour, "shard": shard})
                add(tar, f"{row.key}.png", png)
                add(tar, f"{row.key}.json", json.dumps(asdict(row), ensure_ascii=False).encode())
                rows.append(row)
    return rows


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file that carries neither time nor owner."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


# ---------------------------------------------------------------------------------------------------------------------
# What was built, for people


def card(recipe: dict, pairs: list[Pair], dropped: Counter[str]) -> dict:
    """Counts, drops and sources of a built set."""
    return {
        "recipe": recipe,
        "pictures": len(pairs),
        "concepts": len({pair.code for pair in pairs}),
        "bases": len({pair.base for pair in pairs}),
        "by_style": count(pairs, "style"),
        "by_split": count(pairs, "split"),
        "core_by_split": count([pair for pair in pairs if pair.core], "split"),
        "core_by_style": count([pair for pair in pairs if pair.core], "style"),
        "held_out_bases": len({pair.base for pair in pairs if pair.split == "concepts"}),
        "dropped": dict(sorted(dropped.items())),
    }


def count(pairs: list[Pair], field: str) -> dict[str, int]:
    """How many pairs have each value of one field."""
    return dict(sorted(Counter(getattr(pair, field) for pair in pairs).items()))


def contact_sheet(folder: Path, pairs: list[Pair], side: int = 96) -> Image.Image:
    """A row for each of a few concepts, a column for each hand."""
    wanted: list[tuple[Hand, str]] = [(hand, label) for label in SHEET_LABELS for hand in HANDS]
    rows = {(pair.source, pair.label): pair for pair in pairs}
    sheet = Image.new("RGB", (side * len(HANDS), side * len(SHEET_LABELS)), "white")
    for position, (hand, label) in enumerate(wanted):
        pair = rows.get((hand.source, label))
        if pair is not None:
            picture = Image.fromarray(read_images(folder, [pair])[0]).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (position % len(HANDS) * side, position // len(HANDS) * side))
    return sheet
