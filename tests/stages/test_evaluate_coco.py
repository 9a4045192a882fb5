"""The paper's protocols on captions and pictures made here, with the real classes at tiny size and a tiny CLIP."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from snapfusion.cli import main
from snapfusion.metrics import judge_b
from snapfusion.metrics.clip_score import load_clip
from snapfusion.metrics.frechet import fid
from snapfusion.stages.evaluate import coco
from snapfusion.stages.evaluate.coco import Caption, pictures_of, read_captions, square
from snapfusion.stages.evaluate.config import Config, Sources
from snapfusion.stages.evaluate.evaluation import evaluate
from snapfusion.stages.evaluate.model import Drawing, open_model
from tiny_clip import tiny_clip
from tiny_evaluation import small_backbone

WORDS = ("red fox", "cat", "blue whale", "cloud", "boat", "owl", "chair", "drum", "spoon", "castle")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of different shapes, as a dataset has them."""
    folder, random = tmp_path_factory.mktemp("val2014"), np.random.default_rng(0)
    for place in range(len(WORDS)):
        blocks = random.integers(0, 256, (5 + place % 3, 8 - place % 2, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1)).save(folder / f"COCO_{place:06}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's file: five captions a picture there, two here, not in order."""
    images = [{"id": 100 + place, "file_name": f"COCO_{place:06}.jpg"} for place in range(len(WORDS))]
    annotations = [
        {"id": 1000 * turn + 10 - place, "image_id": 100 + place, "caption": f"{'no' if turn else 'a'} {word}\n"}
        for turn in (1, 0)
        for place, word in enumerate(WORDS)
    ]
    file = tmp_path_factory.mktemp("annotations") / "captions_val2014.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clips") / "tiny")


@pytest.fixture(autouse=True)
def small_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_b, "load_backbone", small_backbone)


def test_cocos_captions_are_the_first_of_each_picture(captions: Path) -> None:
    read = read_captions(captions)
    assert [caption.text for caption in read] == [f"a {word}" for word in WORDS]
    assert read[3] == Caption("coco-103", "a cloud", "COCO_000003.jpg")


def test_other_files_have_a_caption_a_line(tmp_path: Path) -> None:
    table, plain = tmp_path / "captions.csv", tmp_path / "captions.txt"
    table.write_text('file_name,caption\n1.jpg,"a cat, asleep"\n2.jpg,\n3.jpg,a dog\n')
    plain.write_text("a cat\n\n7.jpg\ta dog\n")
    assert read_captions(table) == [Caption("line-0", "a cat, asleep", "1.jpg"), Caption("line-2", "a dog", "3.jpg")]
    assert read_captions(plain) == [Caption("line-0", "a cat", None), Caption("line-2", "a dog", "7.jpg")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.json", '{"images": []}', "expected COCO's captions: images and annotations"),
        ("captions.csv", "text\na cat\n", "got columns text, expected one named caption"),
        ("captions.txt", "\n\n", "without a caption"),
        ("captions.tsv", "a cat", r"expected a file \.json"),
    ],
)
def test_a_file_that_has_no_captions_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path / name)


def test_pictures_lose_their_sides_and_keep_their_middle() -> None:
    stripes = np.zeros((40, 100, 3), np.uint8)
    stripes[:, 30:70] = 200
    assert square(Image.fromarray(stripes), 20).tolist() == np.full((20, 20, 3), 200).tolist()
    assert square(Image.fromarray(stripes[:, 30:70]), 40).tolist() == stripes[:, 30:70].tolist()


def test_the_papers_protocol_end_to_end(
    tiny_sd_checkpoint: Path,
    captions: Path,
    pictures: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(coco.COUNTS, "coco-2014-6k", 6)
    config = Config(
        protocols=("coco-2014-6k",), steps=2, guidance=7.5, curve=(1.0, 7.5), curve_pictures=4, clip=str(clip), side=32
    )
    sources = Sources(captions=captions, pictures=pictures)
    model = open_model(tiny_sd_checkpoint, Drawing(steps=2))
    found = evaluate(config, model, sources, tmp_path / "out", tmp_path / "cache")
    asked = json.loads((tmp_path / "out" / "requests.json").read_text())["coco-2014-6k"]
    assert len({one["key"] for one in asked}) == 6

    # FID again, from the files: drawn ones in the order asked for, all real ones, both as 32 px squares.
    drawn = [Image.open(tmp_path / "out/pictures/guidance-7.5" / f"{one['key']}.png") for one in asked]
    see = small_backbone("cpu", None).embed
    squares = [
        np.stack([square(image, 32) for image in images]) for images in (drawn, map(Image.open, pictures_of(pictures)))
    ]
    figures = found.figures["coco-2014-6k"]
    assert figures["fid"].value == pytest.approx(fid(see(squares[0]), see(squares[1])).value, rel=1e-6)
    assert {"kid", "kid_floor", "fid_floor"} < figures.keys()

    # CLIP sees drawn pictures as they were drawn, and each caption's own picture.
    judge, prompts = load_clip(str(clip)), [one["prompt"] for one in asked]
    expected = judge.cosines([np.asarray(image) for image in drawn], prompts).mean()
    assert figures["clip_score"].value == pytest.approx(expected, abs=1e-6)
    own = [pictures / f"COCO_{int(one['key'].removeprefix('coco-')) - 100:06}.jpg" for one in asked]
    expected = judge.cosines([square(Image.open(file), 32) for file in own], prompts).mean()
    assert figures["clip_score_real"].value == pytest.approx(expected, abs=1e-6)

    # Fig. 4's axes at every guidance; where it is the report's own, of the same pictures.
    assert {guidance: {"fid", "clip_score"} <= found.curve[guidance].keys() for guidance in found.curve} == {
        "1": True, "7.5": True,
    }  # fmt: skip
    expected = judge.cosines([np.asarray(image) for image in drawn[:4]], prompts[:4]).mean()
    assert found.curve["7.5"]["clip_score"].value == pytest.approx(expected, abs=1e-6)


def test_the_line_says_whatever_could_change_the_number(
    tiny_sd_checkpoint: Path, captions: Path, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    config = Config(protocols=("captions",), guidance=3.0, curve=(), clip=str(clip), side=48, reference="prompted")
    sources = Sources(captions=captions, pictures=pictures)
    model = open_model(tiny_sd_checkpoint, Drawing(steps=2))
    found = evaluate(config, model, sources, tmp_path / "out", tmp_path / "cache")
    digest = hashlib.sha256(captions.read_bytes()).hexdigest()[:12]
    for said in (
        "10 pictures",
        f"captions_val2014.json (SHA-256 {digest}",
        "10 real ones (prompted)",
        "48 px",
        "bicubic",
    ):
        assert said in found.protocols["captions"]
    for said in ("2 steps of ddim", "guidance 3", "64 px", "torch float32 on cpu", model.sha256[:12], "seed"):
        assert said in found.drawing
    figures = found.figures["captions"]
    assert "10 drawn against 10 real; 2015 Inception pool3, bicubic to 299 px" in figures["fid"].protocol
    assert load_clip(str(clip)).name in figures["clip_score"].protocol


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocols", "coco-2017-5k", "--guidance", "3"], "got 10 captions in"),
        (["--protocols", "captions"], "got no --guidance, expected one"),
        (["--protocols", "cells", "--guidance", "3"], "got protocol cells and no --data"),
        (["--protocols", "captions", "--guidance", "3", "--clip", "/nowhere/clip"], "got CLIP /nowhere/clip"),
    ],
)
def test_a_mistake_is_one_line(
    tiny_sd_checkpoint: Path, captions: Path, pictures: Path, tmp_path: Path, flags: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    where = ["--captions", str(captions), "--pictures", str(pictures), "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(tiny_sd_checkpoint), *where, *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"snapfusion: {message}")
    if "--clip" not in flags:
        assert list(tmp_path.iterdir()) == []


def test_captions_without_their_pictures_are_held_against_all(
    tiny_sd_checkpoint: Path, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a red fox\na cat\na boat\n")
    sources, model = Sources(captions=file, pictures=pictures), open_model(tiny_sd_checkpoint, Drawing(steps=1))
    settings: dict[str, Any] = {"protocols": ("captions",), "guidance": 1.0, "curve": (), "clip": str(clip), "side": 32}
    found = evaluate(Config(**settings), model, sources, tmp_path / "out", tmp_path / "cache").figures["captions"]
    assert "3 drawn against 10 real" in found["fid"].protocol
    assert "clip_score_real" not in found
    with pytest.raises(ValueError, match="expected captions that name pictures of"):
        evaluate(Config(**settings, reference="prompted"), model, sources, tmp_path / "other", tmp_path / "cache")
