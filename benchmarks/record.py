"""What every script here writes for `--json FILE`: how it measured, and rows that each have a name."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_record(
    file: Path | None, protocol: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **beside: Any
) -> None:
    """Write `{"protocol": ..., "rows": [{"name": ..., "seconds": ...}, ...]}`, and what else there is to say.

    `seconds` is what a row took, or what it measures where that is a time. Without a `file` nothing is written.
    """
    assert all({"name", "seconds"} <= row.keys() for row in rows), [sorted(row) for row in rows]
    if file is None:
        return
    machine = {"cores": os.cpu_count(), "machine": platform.processor() or platform.machine()}
    file.write_text(json.dumps({"protocol": {**machine, **protocol}, "rows": list(rows), **beside}, indent=1) + "\n")
