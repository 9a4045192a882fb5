"""The benchmark of the two-second picture, by the same code at its tiny size."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from snapfusion.bundle import PARTS, read_bundle
from snapfusion.generate import OpenBundle, open_bundle, open_networks
from snapfusion.json_file import write_json
from snapfusion.model.architecture import Architecture
from snapfusion.stages.evaluate.cost import costs_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WIDTHS = (16, 32, 64, 64)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import two_seconds  # pyright: ignore[reportMissingImports]

        yield two_seconds


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where bundles are made, each once."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def bundle(script: Any, work: Path) -> Path:
    architectures = script.architectures_of("tiny", None)
    return script.Bundles(work / "tiny", "tiny", architectures)(script.ROWS["sdxs-1"].model)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sd15", 859_520_964),
        ("table3", 759_327_364),
        ("sdxs", 323_384_964 - 3 * (859_520_964 - 846_789_764) // 5),  # BK-SDM-Tiny without its attentions at the top
    ],
)
def test_networks_have_their_published_sizes(script: Any, name: str, parameters: int) -> None:
    with torch.device("meta"):
        unet = script.sd15.unet("sd15", script.architectures_of("sd15", None)[name])
    assert sum(weight.numel() for weight in unet.parameters()) == parameters


def test_a_bundle_is_drawn_as_users_draw_it(script: Any, bundle: Path) -> None:
    clock = script.Clock()
    png = script.ours(bundle, 1.0, clock)(2)
    (image,) = open_bundle(bundle)(script.PROMPT, seed=script.SEED, steps=2, guidance=1)
    assert image.size == (128, 128)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), np.asarray(image))
    assert set(clock.seconds) == set(PARTS)
    assert min(clock.seconds.values()) > 0


def test_a_network_is_converted_once(bundle: Path) -> None:
    for part in PARTS:
        assert (bundle / part / "openvino_model.bin").stat().st_nlink == 2


def test_operations_are_those_in_the_graph(script: Any, bundle: Path) -> None:
    row = script.ROWS["sdxs-1"]
    counted = script.sd15.costs_of("tiny", script.architectures_of("tiny", None)[row.unet], row.decoder)
    opened = read_bundle(bundle)
    told = costs_of(OpenBundle(opened, open_networks(opened)), bundle)
    assert {part: cost.macs for part, cost in counted.items()} == {part: cost.macs for part, cost in told.items()}


@pytest.mark.parametrize(("longest", "scaled"), [(-1e9, True), (1e9, False)])
def test_a_long_picture_is_scaled_from_three_steps(
    script: Any, monkeypatch: pytest.MonkeyPatch, longest: float, scaled: bool
) -> None:
    monkeypatch.setattr(script, "LONG", longest)
    clock, drawn = script.Clock(), []

    def draw(steps: int) -> bytes:
        drawn.append(steps)
        for part, seconds in zip(PARTS, (1.0, 2.0 * steps, float(len(drawn))), strict=True):
            clock.add(part, seconds)
        return b""

    seconds, _, was_scaled = script.warm(draw, clock, 50, 2)
    assert was_scaled == scaled
    assert drawn == ([1, 1, 4] if scaled else [1, 1, 4, 50, 50])
    decoded = [2.0] if scaled else [4.0, 5.0]  # slower with every picture, which no step is blamed for
    assert seconds[:, 1:] == pytest.approx(np.array([[1.0, 100.0, decoder] for decoder in decoded]))


def test_a_row_says_what_it_lacks(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--size", "tiny", "--work", str(tmp_path), "--rows", "ours-cpu2s-1x1"]
    assert script.main(common) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ours-cpu2s-1x1: not run: needs --cpu2s")
    assert "snapfusion profile sd15" in line
    assert "snapfusion evolve --price-only sd15" in line
    write_json(tmp_path / "wide.json", Architecture.sd15().to_dict())
    assert script.main([*common, "--cpu2s", str(tmp_path / "wide.json")]) == 2
    assert "got widths (320, 640, 1280, 1280), expected (16, 32, 64, 64)" in capsys.readouterr().err


def test_bars_are_said_of_what_was_measured(script: Any) -> None:
    rows = {"genai-bf16-50": {"seconds": 100.0}, "ours-cpu2s-8-int8": {"seconds": 5.0, "host_share": 0.04}}
    found = {name: (value, bar) for name, value, _, bar in script.bars(rows)}
    assert found == {
        "genai-bf16-50 / ours-cpu2s-8-int8": (20.0, 16),
        "ours, host share, largest": (0.04, 0.03),
    }


@pytest.mark.slow
def test_rows_are_measured_and_written(
    script: Any, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Architecture.bk_tiny(WIDTHS)
    write_json(tmp_path / "cpu2s.json", small.to_dict())
    options = ["--cpu2s", str(tmp_path / "cpu2s.json"), "--json", str(tmp_path / "rows.json"), "--runs", "2"]
    names = ["sdxs-1", "ours-cpu2s-1x1"]
    assert script.main(["--size", "tiny", "--work", str(work), *options, "--rows", *names]) == 0
    record = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in record["rows"]] == names
    assert record["protocol"]["weights"] == "random"
    for row in record["rows"]:
        assert len(row["all"]) == 2
        assert 0 < sum(row["part_seconds"].values()) < row["seconds"] < row["cold_seconds"]
        assert row["peak_bytes"] > row["low_memory_bytes"] > 0
        assert row["share_of_peak"] > 0
        assert 0 < row["host_share"] < 1
    (rounded,) = (work / "tiny" / "bundles").glob("cpu2s-*-w8a8-tiny")
    stored = read_bundle(rounded).manifest.runtimes["openvino"]
    assert stored == {"text_encoder": "int8", "unet": "w8a8", "vae_decoder": "w8a8"}  # as export stores them
    out = capsys.readouterr().out
    assert all(name in out for name in names)
