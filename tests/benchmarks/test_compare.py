"""The benchmark that holds a compressed bundle against its base, on tiny ones."""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from snapfusion.autocast import has_bf16
from snapfusion.bundle import read_bundle
from snapfusion.checkpoint import hash_of
from snapfusion.json_file import write_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import compare  # pyright: ignore[reportMissingImports]

        yield compare


def test_rows_are_timed_in_turns_and_say_where_the_factor_comes_from(
    script: Any, few_blocks: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = read_bundle(tiny_bundle)
    figures = {
        "quick": {"alignment": {"value": 0.5}},
        "headline": {"alignment": {"value": 0.7}, "fid": {"value": 12.0}},
    }
    drawn = {"steps": 3, "guidance": ours.manifest.defaults.guidance, "figures": figures}
    judged = [
        {"sha256": ours.hash, **drawn},
        {"sha256": hash_of(few_blocks), **drawn},  # in other steps than those that are timed
    ]
    write_json(tmp_path / "report.json", {"models": [{"evaluation": one} for one in judged]})
    arguments = ["--base", few_blocks, "--ours", tiny_bundle, "--steps", 6, "--runs", 2, "--work", tmp_path]
    arguments += ["--report", tmp_path / "report.json", "--json", tmp_path / "compare.json"]
    assert script.main([str(word) for word in arguments]) == 0

    record = json.loads((tmp_path / "compare.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    bf16 = ["base-torch-bf16"] if has_bf16(torch.device("cpu")) else []
    assert list(rows) == ["base-torch-fp32", *bf16, "base-openvino", "ours-3"]
    assert all(row["steps"] == (3 if name == "ours-3" else 6) for name, row in rows.items())
    for row in rows.values():
        assert len(row["all"]) == 2
        assert 0 < sum(row["part_seconds"].values()) < max(row["all"])
        assert 0 < row["host_share"] < 1
    ratio = rows["base-torch-fp32"]["seconds"] / rows["ours-3"]["seconds"]
    assert prod(record["factors"].values()) == pytest.approx(ratio)
    assert record["factors"]["steps"] == 2
    # only what the report is about has its figures: the same model, steps and guidance
    assert (rows["ours-3"]["fid"], rows["ours-3"]["alignment"]) == (12.0, 0.7)
    assert all("fid" not in row for name, row in rows.items() if name != "ours-3")
    assert "asked >= 25" in capsys.readouterr().out


def test_quality_needs_a_set(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--quality"]) == 2
    assert capsys.readouterr().err == "compare: got --quality and no --data, expected a built sticker set\n"
