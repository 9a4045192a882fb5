"""Packages are fetched by npm, checked, and read without unpacking."""

import hashlib
from pathlib import Path

import pytest

from snapfusion.data.packages import Package, fetch, read
from tiny_stickers import archive_of


def test_archive_names_are_those_of_npm_pack() -> None:
    assert Package("@iconify-json/noto", "1.2.9", "", "").filename == "iconify-json-noto-1.2.9.tgz"


def test_a_package_that_is_there_needs_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    data = archive_of({"icons.json": b"{}", "README.md": b"no"})
    package = Package("tiny", "1.0.0", hashlib.sha256(data).hexdigest(), "MIT")
    (tmp_path / package.filename).write_bytes(data)
    assert read(fetch(package, tmp_path), (".json",)) == {"icons.json": b"{}"}


def test_without_npm_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"got no npm.*install Node\.js") as error:
        fetch(Package("tiny", "1.0.0", "0" * 64, "MIT"), tmp_path)
    assert "\n" not in str(error.value)


def test_another_archive_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    package = Package("tiny", "1.0.0", "0" * 64, "MIT")
    (tmp_path / package.filename).write_bytes(archive_of({"a.json": b"{}"}))
    with pytest.raises(ValueError, match=r"got SHA-256 .* expected 0000"):
        fetch(package, tmp_path)
