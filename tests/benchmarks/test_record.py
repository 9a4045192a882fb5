"""Every script in benchmarks/ takes --json FILE and writes a protocol and named rows there."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
READ_BY_OTHERS = {"sd15", "rivals", "random_bundles", "peaks", "record"}
SCRIPTS = sorted({file.stem for file in BENCHMARKS.glob("*.py")} - READ_BY_OTHERS)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_writes_a_record(name: str) -> None:
    source = (BENCHMARKS / f"{name}.py").read_text()
    assert "write_record(" in source
    assert "--json" in source


def test_a_record_has_a_protocol_and_named_rows(tmp_path: Path) -> None:
    from record import write_record  # pyright: ignore[reportMissingImports]

    file = tmp_path / "record.json"
    write_record(None, {}, [])
    write_record(file, {"runs": 3}, [{"name": "fox", "seconds": 0.5, "ms": 500}], share=0.9)
    record = json.loads(file.read_text())
    assert record["rows"] == [{"name": "fox", "seconds": 0.5, "ms": 500}]
    assert record["protocol"]["runs"] == 3
    assert record["protocol"]["cores"] >= 1
    assert record["share"] == 0.9
    with pytest.raises(AssertionError):
        write_record(file, {}, [{"name": "fox"}])


def test_the_sizes_that_the_literature_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sizes  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(sys, "argv", ["sizes.py", "--json", str(tmp_path / "sizes.json")])
    sizes.main()
    rows: list[dict[str, Any]] = json.loads((tmp_path / "sizes.json").read_text())["rows"]
    found = {row["name"]: row["parameters"] for row in rows}
    assert {859_520_964, 846_789_764, 759_327_364, 579_384_964, 482_346_884, 323_384_964} <= {*found.values()}
    assert all(row["seconds"] is None for row in rows)  # nothing was timed
    assert "859,520,964" in capsys.readouterr().out
