"""The sticker set: built from tiny packages of the real shape."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapfusion.data.concepts import Concept
from snapfusion.data.pairs import hash_of_set, load_index, read_images
from snapfusion.data.stickers import build, render, split_of, split_pairs
from snapfusion.data.styles import HANDS
from tiny_stickers import THINGS, tiny_packages


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny_packages(tmp_path / "packages", monkeypatch)


def test_builds_every_concept_by_every_hand(packages: Path, tmp_path: Path) -> None:
    out = build(tmp_path / "set", size=32, cache=packages, workers=1)
    pairs = load_index(out)
    assert len(pairs) == len(THINGS) * len(HANDS)
    fox = next(pair for pair in pairs if pair.label == "fox")
    assert fox.tags == ("tag", "animal", "sly")
    assert fox.colour == "orange"
    images = read_images(out, pairs)
    assert images.shape == (24, 32, 32, 3)
    assert (images[:, 0, 0] == 255).all()  # on white
    np.testing.assert_array_equal(images[0, 16, 16], (0xE0, 0x60, 0x10))
    card = json.loads((out / "card.json").read_text())
    assert card["dropped"] == {"flags": 1, "letters and digits": 1, "skin tones and hair": 0}
    assert Image.open(out / "contact-sheet.webp").width == 96 * len(HANDS)


def test_the_same_packages_give_the_same_bytes(packages: Path, tmp_path: Path) -> None:
    first, second = (build(tmp_path / name, size=32, cache=packages, workers=1) for name in ("a", "b"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_a_finished_set_is_left_alone_and_foreign_files_too(packages: Path, tmp_path: Path) -> None:
    out = build(tmp_path / "set", size=32, cache=packages, workers=1)
    before = (out / "index.jsonl").stat().st_mtime_ns
    assert build(out, size=32, cache=packages, workers=1) == out
    assert (out / "index.jsonl").stat().st_mtime_ns == before
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("keep")
    with pytest.raises(ValueError, match="other files in it"):
        build(other, size=32, cache=packages)
    assert (other / "thesis.txt").read_text() == "keep"


@pytest.mark.parametrize("side", [16, 32, 64])
def test_a_drawing_in_pixels_fills_a_picture_of_any_size(side: int) -> None:
    """As one in vectors does: the 3D renders are 256 px, and sets may be larger."""
    drawing = io.BytesIO()
    Image.new("RGBA", (32, 32), (200, 30, 30, 255)).save(drawing, "WEBP", lossless=True)
    picture = np.asarray(Image.open(io.BytesIO(render((drawing.getvalue(), side))[0])))
    assert picture.shape == (side, side, 3)
    assert (picture == (200, 30, 30)).all()


def test_a_folder_without_a_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="snapfusion data stickers"):
        load_index(tmp_path)


@pytest.mark.parametrize("row", ['{"key": "a", ', '{"key": "a"}', '{"key": "a", "tags": [], "hue": 1}', "[]"])
def test_rows_of_no_set_are_refused_by_name(tmp_path: Path, row: str) -> None:
    (tmp_path / "index.jsonl").write_text(row)
    with pytest.raises(ValueError, match=r"got .*index\.jsonl with rows of no set .*; build it again"):
        load_index(tmp_path)


def test_a_set_of_the_same_rows_and_larger_pictures_is_another_set(packages: Path, tmp_path: Path) -> None:
    small, same, large = (
        build(tmp_path / name, side, cache=packages) for name, side in (("a", 32), ("b", 32), ("c", 64))
    )
    assert (small / "index.jsonl").read_bytes() == (large / "index.jsonl").read_bytes()
    assert hash_of_set(small) == hash_of_set(same) != hash_of_set(large)


def test_no_held_out_picture_has_one_of_its_group_in_train() -> None:
    """Over more concepts than the real set has; every fourth is a variant of the one before."""
    many = [Concept(f"{k:x}", f"thing {k}", (), 3, "animal-mammal", f"{k - (k % 4 == 3)}") for k in range(3000)]
    drawn = {
        hand.source: {concept.code: b"" for k, concept in enumerate(many) if (k // 7 + place) % 3}
        for place, hand in enumerate(HANDS)
    }
    pairs = list(split_pairs(many, drawn))
    train = {(pair.base, pair.family) for pair in pairs if pair.split == "train"}
    bases = {pair.base for pair in pairs if pair.split == "train"}
    cells = [pair for pair in pairs if pair.split == "cells"]
    held_out = [pair for pair in pairs if pair.split == "concepts"]
    assert len(cells) > 0.02 * len(pairs)
    assert len(held_out) > 0.02 * len(pairs)
    assert not any((pair.base, pair.family) in train for pair in cells)
    sentences = {(pair.base, pair.style) for pair in pairs if pair.split == "train"}
    assert not any((pair.base, pair.style) in sentences for pair in cells)  # two hands draw "flat"
    assert all(pair.base in bases for pair in cells)  # known from another hand
    assert not any(pair.base in bases for pair in held_out)


def test_splits_are_fixed_for_ever() -> None:
    """A change here voids every model that was trained, so it must not come by accident."""
    families = {"fluent", "noto", "twemoji", "emojione", "noto-v1"}
    names = [f"{k:x}" for k in range(200)]
    digest = hashlib.sha256("".join(split_of(name, "noto", families) for name in names).encode()).hexdigest()
    assert digest == "ac16db4dae9a71590d7d17dd9974f40735f957b5a713a215d23d88157086ed5f"
