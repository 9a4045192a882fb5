"""A UNet's pieces are timed in turns and add up to it; the stage writes what prices it, and the paper's figures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snapfusion.cli import main
from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from snapfusion.runtimes import openvino
from snapfusion.stages.profile import stage
from snapfusion.stages.profile.engines import OpenVINO, Torch
from snapfusion.stages.profile.figure import Bar, bars, draw, format_bars
from snapfusion.stages.profile.measure import Method, Stopwatch, calibrate, measure, measure_pieces
from snapfusion.stages.profile.networks import Networks, unet_of
from snapfusion.stages.profile.table1 import Row, format_table1, peak_of, table1
from snapfusion.stages.profile.timing import LEAST, WARM, Timing, rounds, timing
from snapfusion.table import Entry, load_table, pieces
from tiny_models import stable_diffusion_checkpoint, sticker_checkpoint, tiny_unet
from tiny_tables import tiny_table

LENGTH, WIDTHS = 16, (8, 8, 16, 16)
SD15 = Architecture.sd15(WIDTHS)
QUICK = stage.Config(runtime="torch", seconds=0.0)


def weightless(architecture: Architecture = SD15) -> ElasticUNet:
    return unet_of(tiny_unet(), architecture)


def test_what_is_compared_runs_in_turns() -> None:
    calls: list[str] = []
    taken = rounds([lambda: calls.append("a"), lambda: calls.append("b")], seconds=0.0)
    assert taken.shape == (LEAST, 2)
    assert (taken > 0).all()
    assert calls == ["a", "b"] * (WARM + LEAST)
    assert len(rounds([lambda: None], seconds=0.01)) > LEAST


def test_a_timing_is_the_median_and_the_range_of_the_middle_half() -> None:
    assert timing(np.array([5.0, 1.0, 100.0, 2.0, 3.0])) == Timing(median=3.0, spread=3.0)


@pytest.mark.parametrize("method", ["alone", "chain", "difference"])
def test_every_method_prices_every_piece(method: Method) -> None:
    small = Architecture.sd15((8, 8))
    stopwatch = Stopwatch(Torch(), batches=(1,), seconds=0.0)
    copied = small.with_copies("up_blocks.0.resnets.1")
    found = measure_pieces(weightless(copied), LENGTH, stopwatch, method)
    assert {(piece.name, piece.level) for piece, _ in found} >= set(pieces(copied)) - {("rest", 0)}
    sizes = {piece.name: (cost.bytes, piece.sketch.parameters) for piece, cost in found}
    assert all(size == 4 * parameters for size, parameters in sizes.values())
    alone = [cost for piece, cost in found if not piece.removable]
    assert all(cost.timings[1].median > 0 for cost in alone)
    assert all(cost.timings[1].median >= 0 for _, cost in found)


def test_calibration_makes_the_pieces_come_to_the_whole() -> None:
    table = tiny_table(SD15)
    entries = [entry for entry in table.entries if entry.name != "rest"]
    total = table.price(SD15).milliseconds - 0.25
    calibrated = {
        how: replace(table, entries=tuple(calibrate(entries, SD15, 2 * total, how)))
        for how in ("none", "rest", "scale")
    }
    assert calibrated["none"].price(SD15).milliseconds == pytest.approx(total)
    assert calibrated["rest"].price(SD15).milliseconds == pytest.approx(2 * total)
    assert calibrated["rest"].entry("rest").milliseconds == pytest.approx(total)
    assert calibrated["rest"].entry("conv_in") == table.entry("conv_in")
    assert calibrated["scale"].price(SD15).milliseconds == pytest.approx(2 * total)
    assert calibrated["scale"].entry("conv_in").milliseconds == 2 * table.entry("conv_in").milliseconds


def test_figure_2_groups_blocks_as_the_paper_does(tmp_path: Path) -> None:
    table = tiny_table(SD15.with_copies("up_blocks.3.attentions.0"))
    found = bars(table, SD15.with_copies("up_blocks.3.attentions.0"))
    stages = ["Down\n16×16", "Down\n8×8", "Down\n4×4", "Mid\n2×2", "Up\n4×4", "Up\n8×8", "Up\n16×16"]
    assert [bar.stage for bar in found[::2]] == stages
    assert [bar.milliseconds for bar in found if bar.kind == "attention"] == [10, 5, 2.5, 5 / 8, 3.75, 7.5, 20]
    assert [bar.milliseconds for bar in found if bar.kind == "resnet"] == [4, 2, 1, 7 * 2 / 8, 1.5, 3, 6]
    # Behind conv_in and the time embedding, the pieces 2 to 5 are ResNet, attention, ResNet, attention.
    assert found[0] == Bar(stages[0], "attention", 10, 103 + 105, 4000 + 6000)
    first = format_bars([replace(found[0], parameters=5_100_000, macs=2_000_000_000), found[1]]).splitlines()[1]
    assert first.split() == [
        "Down",
        "16×16",
        "10.00",
        "ms",
        "5.1M",
        "2.00",
        "GMAC",
        "4.00",
        "ms",
        "0.0M",
        "0.00",
        "GMAC",
    ]
    draw(table, SD15, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_table_1_is_the_papers() -> None:
    """The paper's own milliseconds: 2 x 4, 50 x 1,700, 369; and 860M at 401.6 GMAC of a peak of 1 TFLOP/s."""
    text = Entry("text_encoder", 0, 4.0, 123_000_000, 0, 6_650_000_000)
    unet = Entry("unet", 0, 1700.0, 860_000_000, 0, 401_600_000_000)
    decoder = Entry("vae_decoder", 0, 369.0, 50_000_000, 0, 1_257_300_000_000)
    rows = table1({1: [text, unet, decoder], 2: [text, replace(unet, milliseconds=3400.0), decoder]}, peak=1e12)
    assert [(row.entry.name, row.batch, row.runs) for row in rows] == [
        ("text_encoder", 1, 2),
        ("unet", 1, 50),
        ("vae_decoder", 1, 1),
        ("unet", 2, 50),
    ]
    assert rows[1] == Row(unet, 1, 50, pytest.approx(2 * 0.4016 / 1.7))
    assert rows[3].share == pytest.approx(rows[1].share)
    lines = format_table1(rows, 1e12).splitlines()
    assert lines[2].split() == ["unet", "1", "860.0", "401.60", "1700.00", "0.00", "50", "85000.0", "47%"]
    assert lines[-1] == "peak: 1000 GFLOP/s, in matrix multiplications"


def test_the_peak_counts_two_operations_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapfusion.stages.profile.table1.PEAK_SIZES", (64,))
    assert 1e6 < peak_of(Torch(), seconds=0.0) < 1e15


def test_profile_writes_tables_that_price_the_checkpoint(
    tiny_sd_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapfusion.stages.profile.table1.PEAK_SIZES", (64,))
    out = tmp_path / "profile"
    result = stage.run(QUICK, tiny_sd_checkpoint, out)
    assert {file.name for file in out.iterdir()} == {"table.json", "table-batch2.json", "figure.png", "result.json"}
    for batch, name in ((1, "table.json"), (2, "table-batch2.json")):
        table = load_table(out / name)
        assert (table.batch, table.widths, table.sample_size, table.precision) == (batch, WIDTHS, 16, "f32")
        unet = stable_diffusion_checkpoint().unet
        price = table.price(SD15)
        assert price.parameters == sum(weight.numel() for weight in unet.parameters())
        assert price.megabytes == pytest.approx(4 * price.parameters / 1e6)
        assert price.milliseconds == pytest.approx(table.entry("unet").milliseconds)
        assert table.entry("text_encoder").milliseconds > 0
        assert table.entry("vae_decoder").milliseconds > 0
    described = result.describe()
    assert "text_encoder" in described
    assert "Up 16×16" in described

    written = (out / "table.json").stat().st_mtime_ns
    assert stage.run(QUICK, tiny_sd_checkpoint, out).figures == result.figures
    assert (out / "table.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="made with runtime 'torch', expected 'openvino'"):
        stage.run(replace(QUICK, runtime="openvino"), tiny_sd_checkpoint, out)


@pytest.mark.slow
def test_openvino_is_measured_as_bundles_are_drawn() -> None:
    small, tiny = Architecture.sd15((8, 8)), sticker_checkpoint()
    networks = replace(Networks.of(tiny), unet=weightless(small))
    stopwatch = Stopwatch(OpenVINO(threads=1), batches=(2,), seconds=0.0)
    table = measure(networks, stopwatch, "alone", "rest")[2]
    assert (table.batch, table.threads, table.precision) == (2, 1, openvino.precision())
    assert table.engine.startswith("OpenVINO")
    price = table.price(small)
    assert price.milliseconds == pytest.approx(table.entry("unet").milliseconds)
    assert all(entry.milliseconds > 0 for entry in table.entries if entry.name != "rest")
    whole = table.entry("unet")
    assert price.parameters == whole.parameters
    assert 2 * whole.parameters <= whole.bytes < 2.5 * whole.parameters  # float16, and constants
    assert 1e6 * price.megabytes == pytest.approx(whole.bytes, rel=0.1)


def test_a_phones_table_is_taken_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    phone = replace(tiny_table(SD15), device="iPhone 14 Pro", engine="Core ML")
    phone.save(tmp_path / "phone.json")
    command = ["profile", str(tiny_checkpoint), "--table", str(tmp_path / "phone.json")]
    assert main([*command, "--out", str(tmp_path / "profile")]) == 0
    assert load_table(tmp_path / "profile" / "table.json") == phone
    figures = json.loads((tmp_path / "profile" / "result.json").read_text())["figures"]
    assert figures["price"]["milliseconds"] == pytest.approx(phone.price(SD15).milliseconds)


def test_a_table_that_lacks_a_piece_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = tuple(entry for entry in tiny_table(SD15).entries if entry.name != "mid_block.attentions.0")
    replace(tiny_table(SD15), entries=lacking).save(tmp_path / "phone.json")
    command = ["profile", str(tiny_checkpoint), "--table", str(tmp_path / "phone.json")]
    assert main([*command, "--out", str(tmp_path / "profile")]) == 2
    assert "without mid_block.attentions.0 at level 3, expected an entry for each piece" in capsys.readouterr().err
    assert not (tmp_path / "profile").exists()


def test_senseless_configs_are_refused() -> None:
    for batches in ((), (0,), (1, 1)):
        with pytest.raises(ValueError, match="expected different counts of at least 1"):
            stage.Config(batches=batches)
    with pytest.raises(ValueError, match="got threads 0, expected at least 1"):
        stage.Config(threads=0)


def test_the_command_for_stable_diffusion_is_a_command_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "sd15", "--help"]) == 0
    assert "Table 1" in capsys.readouterr().out
