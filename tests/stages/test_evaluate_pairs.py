"""Blind pairs: who stands where, what the page gives away (nothing), what answers come to."""

import base64
import io
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from snapfusion.cli import main
from snapfusion.stages.evaluate.exam import Request
from snapfusion.stages.evaluate.pairs import BlindPair, blind_pairs, identity, preferences, write_pairs

REQUESTS = [Request(f"key{place}", f"a </script> fox {place}", place) for place in range(60)]
COLOURS = (250, 10, 20), (10, 240, 30), (0, 40, 230)  # of the pictures by each model


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Each model's pictures, all of one colour."""
    folders = [tmp_path / f"model{place}" for place in range(3)]
    for folder, colour in zip(folders, COLOURS, strict=True):
        folder.mkdir()
        for request in REQUESTS:
            Image.new("RGB", (64, 64), colour).save(folder / f"{request.key}.png")
    return folders


def test_sides_and_order_are_the_seeds() -> None:
    pairs = blind_pairs(REQUESTS, 3, seed=0)
    assert pairs == blind_pairs(list(reversed(REQUESTS)), 3, seed=0)
    assert pairs != blind_pairs(REQUESTS, 3, seed=1)
    assert {pair.key for pair in pairs} == {request.key for request in REQUESTS}
    assert [pair.model for pair in pairs].count(1) == 30
    assert binomtest(sum(pair.base_left for pair in pairs), 60).pvalue > 0.01
    assert blind_pairs(REQUESTS, 1, seed=0) == []


def test_the_page_shows_each_picture_on_its_side_and_does_not_say_whose(folders: list[Path], tmp_path: Path) -> None:
    pairs = blind_pairs(REQUESTS, 3, seed=0)
    write_pairs(tmp_path / "pairs.html", pairs, folders)
    page = (tmp_path / "pairs.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert data["id"] == identity([asdict(pair) for pair in pairs])
    for shown, pair in zip(data["pairs"], pairs, strict=True):
        assert shown.keys() == {"prompt", "left", "right"}
        assert shown["prompt"] == pair.prompt
        expected = (0, pair.model) if pair.base_left else (pair.model, 0)
        for side, model in zip(("left", "right"), expected, strict=True):
            image = Image.open(io.BytesIO(base64.b64decode(shown[side].partition("base64,")[2])))
            assert np.abs(np.asarray(image).mean((0, 1)) - COLOURS[model]).max() < 8
    for word in ("base_left", "model0", "key0", "http"):
        assert word not in page.replace("</script> fox", "")


def report_with(pairs: list[BlindPair], folder: Path) -> Path:
    models = [{"label": label} for label in ("base", "small", "tiny")]
    (folder / "report.json").write_text(json.dumps({"models": models, "pairs": [asdict(pair) for pair in pairs]}))
    return folder / "report.json"


def answers(pairs: list[BlindPair], chosen: dict[int, str], file: Path) -> Path:
    content = {"pairs": identity([asdict(pair) for pair in pairs]), "answers": {str(k): v for k, v in chosen.items()}}
    file.write_text(json.dumps(content))
    return file


def test_answers_come_to_a_preference_with_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = blind_pairs(REQUESTS, 3, seed=0)
    base = {place: "left" if pair.base_left else "right" for place, pair in enumerate(pairs)}
    other = {place: "right" if pair.base_left else "left" for place, pair in enumerate(pairs)}
    small, tiny = ([place for place, pair in enumerate(pairs) if pair.model == model] for model in (1, 2))
    first = {**{place: base[place] for place in small[:9]}, **{place: other[place] for place in small[9:30]}}
    second = {**{place: other[place] for place in tiny[:2]}, **dict.fromkeys(small[:4], "same")}
    report = report_with(pairs, tmp_path)
    files = [answers(pairs, first, tmp_path / "1.json"), answers(pairs, second, tmp_path / "2.json")]
    found = preferences(files, report)
    assert [(one.model, one.wins, one.losses, one.ties) for one in found] == [("small", 21, 9, 4), ("tiny", 2, 0, 0)]
    expected = binomtest(21, 30).proportion_ci(method="wilson")
    assert (found[0].share.low, found[0].share.high) == pytest.approx((expected.low, expected.high))
    assert main(["preferences", *map(str, files), "--report", str(tmp_path)]) == 0
    assert "small: preferred to the base in 21 of 30 decided answers, 70% [52%, 83%]" in capsys.readouterr().out


def test_answers_to_other_pairs_or_no_answers_are_refused(tmp_path: Path) -> None:
    pairs, others = blind_pairs(REQUESTS, 2, seed=0), blind_pairs(REQUESTS, 2, seed=1)
    report = report_with(pairs, tmp_path)
    with pytest.raises(ValueError, match="got answers to pairs"):
        preferences([answers(others, {0: "left"}, tmp_path / "other.json")], report)
    for wrong in ({0: "up"}, {60: "left"}):
        with pytest.raises(ValueError, match="expected answers left, right, same by the number of the pair"):
            preferences([answers(pairs, wrong, tmp_path / "wrong.json")], report)
