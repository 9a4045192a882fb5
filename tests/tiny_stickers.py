"""Packages of the sticker set's real shape, with three things in them."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from snapfusion.data import concepts, stickers
from snapfusion.data.packages import Package
from snapfusion.data.styles import HANDS, slug

THINGS = {
    "1f98a": ("fox", "#e06010"),
    "1f34e": ("red apple", "#d02020"),
    "1f47b": ("ghost", "#8090a0"),
}  # noto's ghost is a held-out cell
ANNOTATIONS = {"\U0001f98a": {"default": ["animal", "sly"]}}


def archive_of(files: dict[str, bytes]) -> bytes:
    """An archive as `npm pack` writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def archive(folder: Path, package: Package, files: dict[str, bytes]) -> Package:
    """Write a package's archive and return the package with the archive's own hash."""
    data = archive_of(files)
    (folder / package.filename).write_bytes(data)
    return replace(package, sha256=hashlib.sha256(data).hexdigest())


def emoji_entries() -> list[dict]:
    entry = {"group": 3, "subgroup": 1, "skins": [], "tags": ["tag"]}
    kept = [
        {**entry, "hexcode": code.upper(), "label": label, "emoji": chr(int(code, 16)), "order": order}
        for order, (code, (label, _)) in enumerate(THINGS.items())
    ]
    flag = {**entry, "hexcode": "1F1E6-1F1E7", "label": "flag", "emoji": "", "group": 9, "subgroup": 2, "order": 9}
    return [*kept, {**kept[0], "hexcode": "0031", "group": None}, flag]


def tiny_packages(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write all packages to `cache`, pin the set to them, and return it."""
    cache.mkdir()
    tables = {
        "en/data.json": json.dumps(emoji_entries()).encode(),
        "meta/groups.json": json.dumps({"subgroups": {"1": "animal-mammal", "2": "country-flag"}}).encode(),
    }
    annotations = {"annotations": {"annotations": ANNOTATIONS}}
    cldr = {"annotations/en/annotations.json": json.dumps(annotations).encode()}
    for name, files in (("EMOJIBASE", tables), ("CLDR", cldr)):
        package = archive(cache, getattr(concepts, name), files)
        monkeypatch.setattr(concepts, name, package)
        monkeypatch.setattr(stickers, name, package)
    hands = []
    for hand in HANDS:
        bodies = {code: f'<circle cx="16" cy="16" r="10" fill="{colour}"/>' for code, (_, colour) in THINGS.items()}
        frame = '<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32" viewBox="0 0 32 32">'
        if hand.named_by == "file":
            files = {f"assets/{code}.svg": f"{frame}{body}</svg>".encode() for code, body in bodies.items()}
        else:
            icons = {slug(THINGS[code][0]): {"body": body} for code, body in bodies.items()}
            chars = {code: slug(label) for code, (label, _) in THINGS.items()}
            table = {"icons": icons, "width": 32, "height": 32}
            files = {"icons.json": json.dumps(table).encode(), "chars.json": json.dumps(chars).encode()}
        hands.append(replace(hand, package=archive(cache, hand.package, files)))
    monkeypatch.setattr(stickers, "HANDS", tuple(hands))
    return cache
