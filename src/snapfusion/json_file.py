"""JSON objects in and out of files, with errors that name the file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; raises `ValueError` if there is none."""
    if not file.is_file():
        raise ValueError(f"{file}: missing, expected a JSON object")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise ValueError(f"{file}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file}: got {type(value).__name__}, expected a JSON object")
    return value


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write `value`, keys in the order given, whole or not at all; makes the folder."""
    partial = file.with_name(f"{file.name}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_text(json.dumps(dict(value), indent=2) + "\n", encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
