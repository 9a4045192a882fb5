"""A person's own pictures become a set that stages read."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapfusion import cli
from snapfusion.data.collect import Config, collect
from snapfusion.data.pairs import load_index, read_images
from snapfusion.data.prompts import caption, prompt_of
from snapfusion.latents import captions_of, train_rows

COUNT = 60


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(COUNT):
        Image.new("RGB", (40, 20 + number), (number, 0, 255)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"A photo of\n  number {number}, by night ")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("no picture")
    return folder


def test_a_folder_becomes_a_set(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    command = ["data", "pairs", str(pictures), "--out", str(out), "--size", "16", "--held-out", "0.2"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    pairs = load_index(out)
    held_out = [pair for pair in pairs if pair.split == "cells"]
    assert said == f"{out}: {COUNT} pictures, {len(held_out)} of them held out; 1 broken ones left out\n"
    assert 3 <= len(held_out) <= 25
    images = read_images(out, pairs)
    assert images.shape == (COUNT, 16, 16, 3)
    for pair, image in zip(pairs, images, strict=True):
        number = int(pair.label.removeprefix("A photo of number ").removesuffix(", by night"))
        assert np.all(image == (number, 0, 255))

    written = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert cli.main(command) == 0
    assert capsys.readouterr().out == said
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == written


def test_no_picture_with_a_caption_is_no_set(pictures: Path, tmp_path: Path) -> None:
    for file in pictures.glob("*.txt"):
        file.unlink()
    with pytest.raises(ValueError, match=r"got no picture with a caption in .*; the last of those left out: .*\.txt"):
        collect(str(pictures), tmp_path / "set", Config(size=16))
    assert not list(tmp_path.glob("*set*"))
    (pictures / "7.txt").write_text("\ufeffa cat", encoding="utf-8")
    collect(str(pictures), tmp_path / "set", Config(size=16))
    assert [pair.label for pair in load_index(tmp_path / "set")] == ["a cat"]


@pytest.mark.parametrize(("field", "value"), [("key", "../../x"), ("key", "/x"), ("shard", "../x.tar"), ("shard", "x")])
def test_a_set_whose_names_lead_elsewhere_is_refused(pictures: Path, tmp_path: Path, field: str, value: str) -> None:
    collect(str(pictures), tmp_path / "set", Config(size=16, pictures=1))
    index = tmp_path / "set" / "index.jsonl"
    index.write_text(json.dumps({**json.loads(index.read_text()), field: value}))
    with pytest.raises(ValueError, match=r"index\.jsonl with rows of no set"):
        load_index(tmp_path / "set")


def test_captions_are_used_as_they_came(pictures: Path, tmp_path: Path) -> None:
    """No style is named and no picture is given another colour."""
    collect(str(pictures), tmp_path / "set", Config(size=16, pictures=5))
    pairs = load_index(tmp_path / "set")
    assert len(pairs) == 5
    assert [caption(pair, np.random.default_rng(0)) for pair in pairs] == [pair.label for pair in pairs]
    assert [prompt_of(pair) for pair in pairs] == [pair.label for pair in pairs]
    rows, words, _ = train_rows(pairs, read_images(tmp_path / "set", pairs), seed=0)
    assert rows == pairs
    places, sentences = captions_of(rows, words, 2, seed=0)
    assert sentences == ["", *(pair.label for pair in pairs)]
    assert places.tolist() == [[place, place] for place in range(1, 6)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(size=8), "expected size 16 to 2048"),
        (Config(held_out=0), "held_out between 0 and 1"),
        (Config(size=16, corrupt=0), "got 1 broken samples, expected at most 0; the last: broken.png"),
    ],
)
def test_mistakes_are_refused(pictures: Path, tmp_path: Path, config: Config, message: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        collect(str(pictures), tmp_path / "set", config)
    assert message in str(error.value)
    assert not (tmp_path / "set").exists()


def test_another_folder_is_left_alone(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "card.json").write_text(json.dumps({"mine": True}))
    with pytest.raises(ValueError, match="which holds something else, expected a new folder"):
        collect(str(pictures), tmp_path / "set")
    assert [file.name for file in (tmp_path / "set").iterdir()] == ["card.json"]
