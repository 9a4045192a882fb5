"""Models side by side: report.json, the page made from it, its charts."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from snapfusion.cli import main
from snapfusion.metrics import judge_a, judge_b
from snapfusion.stage_folder import hash_of_file
from snapfusion.stages.evaluate.chart import Axis, Point, curve_chart, intervals, ticks
from snapfusion.stages.evaluate.config import Config, Sources
from snapfusion.stages.evaluate.figures import Figure
from snapfusion.stages.evaluate.page import write_page
from snapfusion.stages.evaluate.stage import compare, labels_of
from tiny_evaluation import Copier, model, small_backbone, sticker_set

CONFIG = Config(protocols=("quick", "cells"), guidance=3.0, curve=(1.0, 3.0), curve_pictures=24, grid=5, pairs=7)


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and all its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module", autouse=True)
def small_judges() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_a, "load_backbone", small_backbone)
        patch.setattr(judge_b, "load_backbone", small_backbone)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sticker_set(tmp_path_factory.mktemp("stickers") / "set")


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `compare` writes for a model and its copy, which draws at another guidance nothing but noise."""
    out = tmp_path_factory.mktemp("report")
    base, other = model(Copier(data), "a <base>"), replace(model(Copier(data), "copy"), sha256="1" * 64)
    compare(CONFIG, [base, other], Sources(data=data), out, out.parent / "cache")
    return out


def report_in(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_the_report_holds_both_models_and_what_is_shown(folder: Path) -> None:
    report = report_in(folder)
    assert [one["label"] for one in report["models"]] == ["a <base>", "copy"]
    for one in report["models"]:
        figures = one["evaluation"]["figures"]
        assert {"fid", "kid"} & figures["quick"].keys() == {"kid"}
        assert {"alignment", "recall_at_10", "style", "memorised"} < figures["quick"].keys()
        assert set(one["evaluation"]["curve"]) == {"1", "3"}
        assert one["evaluation"]["curve"]["1"]["kid"]["value"] > one["evaluation"]["curve"]["3"]["kid"]["value"]
    asked = json.loads((folder / report["models"][0]["folder"] / "requests.json").read_text())["cells"]
    assert report["grid"] == asked[:5]  # held out
    assert sorted(pair["key"] for pair in report["pairs"]) == sorted(one["key"] for one in asked[:7])
    assert "seconds" not in json.dumps(report)


SPREAD = {"median": 2.0, "low": 1.0, "high": 3.0}
TIMINGS = {
    "machine": {
        "cpu": "a <cpu>", "cores": 2, "gpu": "<gpu>", "busy": 0.1, "system": "x", "torch": "2", "openvino": "3",
    },
    "runs": 3, "prompt": "a fox",
    "models": [
        {"parts_ms": {}, "warm_s": SPREAD, "cold_s": {**SPREAD, "median": 5.0}, "peak_bytes": 2e9},
        {"parts_ms": {}, "warm_s": {**SPREAD, "median": 0.5}, "cold_s": {**SPREAD, "median": 2.0}, "peak_bytes": 5e8},
    ],
}  # fmt: skip


def test_the_page_is_one_file_and_says_what_the_report_says(folder: Path) -> None:
    report = report_in(folder)
    page_file = folder.parent / "elsewhere" / "report.html"
    page_file.parent.mkdir()
    write_page(page_file, report, TIMINGS, folder)
    page = page_file.read_text()
    found = Tags(page)
    outside = [
        value
        for tag, attributes in found.tags
        for name, value in attributes.items()
        if name in ("src", "href") and value is not None and not value.startswith("data:image/webp;base64,")
    ]
    assert outside == [f"../{folder.name}/pairs.html"]
    assert not {"script", "link", "iframe"} & {tag for tag, _ in found.tags}
    assert "@import" not in page
    assert "url(" not in page
    assert sum(tag == "img" for tag, _ in found.tags) == 5 * 3  # both models and the real one
    for one in report["models"]:
        for protocol, figures in one["evaluation"]["figures"].items():
            assert one["evaluation"]["protocols"][protocol] in found.text
            assert f"{figures['kid']['value']:.4g}" in found.text
    for said in ("a <base>", "7 blind pairs", "a <cpu>", "an <gpu>", "0.50 s", "4.00×", "2.00 GB", "500 MB", "2.50×"):
        assert said in found.text
    assert "a <base>" not in page  # escaped


def test_a_page_without_times_has_none(folder: Path, tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", report_in(folder), None, folder)
    assert "warm" not in Tags((tmp_path / "report.html").read_text()).text


def test_models_of_one_name_are_told_apart(data: Path) -> None:
    one, other = model(Copier(data)), model(Copier(data), "other")
    assert labels_of([one, other]) == ["copier", "other"]
    assert labels_of([one, other, one]) == ["copier (1)", "other", "copier (3)"]


def test_a_chart_puts_points_where_their_values_are() -> None:
    axis = Axis(10, 20, 100, 0)
    assert [axis.place(value) for value in (10, 15, 20)] == [100, 50, 0]
    lines = [[Point(0.1, 20, "2"), Point(0.3, 10, "7.5")], [Point(0.2, 15, "3")]]
    chart = curve_chart(lines, "alignment", "KID")
    assert re.findall(r'class="name"[^>]*>([^<]*)<', chart) == ["2", "7.5", "3"]
    dots = [tuple(map(float, dot)) for dot in re.findall(r'class="dot" cx="([^"]*)" cy="([^"]*)"', chart)]
    assert dots[0][0] < dots[2][0] < dots[1][0]  # further right is more aligned
    assert dots[0][1] < dots[2][1] < dots[1][1]  # further down is less distant
    assert dots[2][0] - dots[0][0] == pytest.approx(dots[1][0] - dots[2][0], abs=0.11)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.255, 0.307], [0.25, 0.26, 0.27, 0.28, 0.29, 0.3, 0.31]),
        ([13.7, 20.7], list(range(13, 22))),
        ([2, 2], [2, 2.5]),
    ],
)
def test_ticks_are_round_and_hold_all_values(values: list[float], expected: list[float]) -> None:
    found = ticks(values)
    assert found[0] <= min(values)
    assert found[-1] >= max(values)
    assert found == pytest.approx(expected)


def test_intervals_are_drawn_to_scale() -> None:
    drawn = intervals([Figure(2, 1, 3, ""), Figure(5, 4, 6, "")], real=6)
    ends = [tuple(map(float, line)) for line in re.findall(r'class="line" x1="([^"]*)" x2="([^"]*)"', drawn)]
    assert ends[0][1] - ends[0][0] == pytest.approx(ends[1][1] - ends[1][0], abs=0.11)
    assert ends[1][0] > ends[0][1]
    assert float(re.findall(r'class="real" x1="([^"]*)"', drawn)[0]) == pytest.approx(ends[1][1], abs=0.11)


@pytest.mark.slow
def test_the_command_with_a_checkpoint_and_its_bundle(
    few_blocks: Path, tiny_bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--protocols", "cells", "--guidance", "2", "--curve", "1", "2", "--curve-pictures", "2", "--steps", "1"]
    command = ["evaluate", str(few_blocks), str(tiny_bundle), "--data", str(data), "--out", str(out), *flags]
    assert main([*command, "--runs", "1", "--grid", "2", "--pairs", "2"]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    page = Tags((out / "report.html").read_text())
    for said in ("text encoder", "multiply-accumulates", "a picture, warm", "most memory held", "Over guidance"):
        assert said in page.text
    report, timings = report_in(out), json.loads((out / "timings.json").read_text())
    macs = [one["macs_of_picture"] for one in report["models"]]
    assert macs[0] == pytest.approx(macs[1], rel=0.01)
    assert len(timings["models"]) == 2
    written = json.loads((out / "result.json").read_text())["outputs"]
    assert {"report.json", "pairs.html"} < written.keys()
    assert not {"timings.json", "report.html"} & written.keys()

    # Again: nothing is done. Without its page: only that is written, the same.
    page_hash, before = hash_of_file(out / "report.html"), (out / "report.json").stat().st_mtime_ns
    (out / "report.html").unlink()
    assert main([*command, "--runs", "1", "--grid", "2", "--pairs", "2"]) == 0
    assert hash_of_file(out / "report.html") == page_hash
    assert (out / "report.json").stat().st_mtime_ns == before
    assert main([*command, "--runs", "1", "--grid", "3", "--pairs", "2"]) == 2
    assert "made with grid 2, expected 3" in capsys.readouterr().err
