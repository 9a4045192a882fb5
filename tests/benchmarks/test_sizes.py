"""The benchmark that counts and times whole UNets, without the timing."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from snapfusion.checkpoint import load_unet
from snapfusion.json_file import write_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def rows_of(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """What the script writes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sizes  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(sys, "argv", ["sizes.py", *arguments, "--json", str(out)])
    sizes.main()
    return {row["name"]: row for row in json.loads(out.read_text())["rows"]}


def test_published_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = rows_of(monkeypatch, tmp_path / "rows.json")
    assert rows["sd15"]["parameters"] == 859_520_964
    assert rows["without top attention"]["parameters"] == 846_789_764
    assert rows["table3"]["parameters"] == 759_327_364
    assert all("seconds" not in row or row["seconds"] is None for row in rows.values())


def test_an_evolved_unet_stands_beside_its_base(
    monkeypatch: pytest.MonkeyPatch, few_blocks: Path, tmp_path: Path
) -> None:
    whole = load_unet(few_blocks)
    smaller = whole.architecture.without("up_blocks.1.attentions.0")
    write_json(tmp_path / "9ms" / "architecture.json", smaller.to_dict())
    file = str(tmp_path / "9ms" / "architecture.json")
    rows = rows_of(monkeypatch, tmp_path / "rows.json", "--model", str(few_blocks), "--architecture", file)
    assert rows["base"]["parameters"] == sum(weight.numel() for weight in whole.parameters())
    assert set(rows) == {"base", "9ms"}
    assert rows["9ms"]["parameters"] < rows["base"]["parameters"]
