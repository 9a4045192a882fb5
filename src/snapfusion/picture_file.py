"""Where a picture goes: file names from prompts, and files that appear whole or not at all."""

import os
import re
import unicodedata
from itertools import count
from pathlib import Path

LONGEST_STEM = 120  # bytes; file systems take 255


def stem_for(prompt: str) -> str:
    """A file name's stem from a prompt: its letters and digits, of any script, in lower case, with hyphens between."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", prompt).lower())
    return "-".join(words).encode()[:LONGEST_STEM].decode(errors="ignore").strip("-") or "picture"


def check_out(out: Path) -> None:
    """Refuse a place where no picture can be written, before time is spent on drawing it."""
    if out.is_dir():
        raise ValueError(f"got --out {out}, which is a folder, expected a file name such as {out / 'picture.png'}")
    if out.suffix.lower() != ".png":
        raise ValueError(f"got --out {out}, expected a name that ends in .png")
    if not out.parent.is_dir():
        raise ValueError(f"got --out {out}, expected a folder that exists; make {out.parent} first")


def write_numbered(data: bytes, out: Path, number: int | None) -> Path:
    """Write to `out`, or to `out` with `-number` before its suffix, over whatever is there. Returns the path."""
    path = out if number is None else out.with_name(f"{out.stem}-{number}{out.suffix}")
    _replace(data, path)
    return path


def write_new(data: bytes, folder: Path, stem: str, number: int | None) -> Path:
    """Write to the first free name of `stem.png`, `stem-2.png`, ..., or from `stem-number.png` on. Returns the path."""
    for k in count(number or 1):
        path = folder / (f"{stem}.png" if k == 1 and number is None else f"{stem}-{k}.png")
        try:
            path.touch(exist_ok=False)  # the name is ours from here on, whoever else draws the same prompt
        except FileExistsError:
            continue
        try:
            _replace(data, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path
    raise AssertionError("unreachable")


def _replace(data: bytes, path: Path) -> None:
    """Write beside `path`, then rename: who looks at `path` sees the old file or the new one, never half of it."""
    part = path.with_name(f".snapfusion-{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
