"""The drawing hands of the sticker set: the style that each counts as, and where it keeps its pictures.

A *family* is one hand's art: fluent's four styles are drawn over the same outlines, so holding out one of them and
training on another would not be holding out anything.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from snapfusion.data.concepts import Concept
from snapfusion.data.packages import Package, fetch, read


@dataclass(frozen=True)
class Hand:
    """One hand that draws: its style, the words that a prompt uses for it, its package, and how its files are named."""

    name: str
    style: str
    words: tuple[str, ...]
    family: str
    package: Package
    named_by: (
        str  # "file" (code point is the file name), "chars" (a table gives the icon), "slug" (label gives the icon)
    )
    core: bool = False

    @property
    def source(self) -> str:
        """The package, as the index names it."""
        return f"{self.package.name}@{self.package.version}"


HANDS = (
    Hand(
        "3d",
        "3d",
        ("3D render", "3D"),
        "fluent",
        Package(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
            "MIT",
        ),
        "file",
        core=True,
    ),
    Hand(
        "glossy",
        "glossy",
        ("glossy",),
        "fluent",
        Package(
            "@lobehub/fluent-emoji-modern",
            "1.0.0",
            "080906de394ad8335c24f67e1b33f12a9ac1b6d99324d26ae63cad8d27359769",
            "MIT",
        ),
        "file",
    ),
    Hand(
        "flat",
        "flat",
        ("flat",),
        "fluent",
        Package(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
            "MIT",
        ),
        "chars",
    ),
    Hand(
        "silhouette",
        "silhouette",
        ("black silhouette", "silhouette"),
        "fluent",
        Package(
            "@iconify-json/fluent-emoji-high-contrast",
            "1.2.6",
            "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
            "MIT",
        ),
        "chars",
        core=True,
    ),
    Hand(
        "gradient",
        "gradient",
        ("soft gradient",),
        "noto",
        Package(
            "@iconify-json/noto",
            "1.2.9",
            "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
            "Apache-2.0",
        ),
        "chars",
        core=True,
    ),
    Hand(
        "blob",
        "blob",
        ("blob",),
        "noto-v1",
        Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
            "Apache-2.0",
        ),
        "slug",
    ),
    Hand(
        "simple",
        "flat",
        ("flat",),
        "twemoji",
        Package(
            "@iconify-json/twemoji",
            "1.2.5",
            "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
            "CC-BY-4.0",
        ),
        "chars",
    ),
    Hand(
        "cartoon",
        "cartoon",
        ("cartoon",),
        "emojione",
        Package(
            "@iconify-json/emojione",
            "1.2.3",
            "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
            "CC-BY-4.0",
        ),
        "slug",
        core=True,
    ),
)


def pictures(hand: Hand, concepts: list[Concept], cache: Path) -> dict[str, bytes]:
    """The hand's drawing of every concept that it has: code point -> SVG or WebP bytes."""
    archive = fetch(hand.package, cache)
    if hand.named_by == "file":
        files = {
            plain_code(path.rsplit("/", 1)[-1].rsplit(".", 1)[0]): data
            for path, data in read(archive, (".svg", ".webp")).items()
        }
        return {concept.code: files[concept.code] for concept in concepts if concept.code in files}
    tables = read(archive, ("icons.json", "chars.json"))
    icons = json.loads(tables["icons.json"])
    if hand.named_by == "chars":
        names = {plain_code(code): name for code, name in json.loads(tables["chars.json"]).items()}
    else:
        names = {concept.code: slug(concept.label) for concept in concepts}
    found = {concept.code: names[concept.code] for concept in concepts if concept.code in names}
    return {code: svg(icons, name) for code, name in found.items() if name in icons["icons"]}


def plain_code(code: str) -> str:
    """A code point sequence without its variation selectors, lower case: `2764-FE0F` -> `2764`."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def slug(label: str) -> str:
    """A label as the icon sets spell it: `piñata` -> `pinata`, `woman’s hat` -> `womans-hat`."""
    ascii_only = unicodedata.normalize("NFKD", label.replace("’", "")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-")


def svg(icons: dict, name: str) -> bytes:
    """One icon of an Iconify table as a whole SVG."""
    icon = icons["icons"][name]
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'.encode()
