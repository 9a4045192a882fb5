"""The hands that draw: what they are called, and where their packages keep a picture."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from snapfusion.data import styles
from snapfusion.data.concepts import Concept
from snapfusion.data.styles import HANDS, Hand, pictures, plain_code, slug, svg

ICONS = {
    "icons": {
        "red-apple": {"body": '<path d="M0 0"/>'},
        "ghost": {"body": '<use xlink:href="#a"/>', "width": 20, "left": 3},
    },
    "width": 36,
    "height": 36,
}


def hand(named_by: str) -> Hand:
    return next(hand for hand in HANDS if hand.named_by == named_by)


def concept(code: str, label: str) -> Concept:
    return Concept(code, label, (), 4, "food-fruit", label)


def test_a_style_has_one_way_to_say_it_and_a_family_one_art() -> None:
    words: dict[str, set[tuple[str, ...]]] = {}
    for one in HANDS:
        words.setdefault(one.style, set()).add(one.words)
    assert len(words) >= 7
    assert all(len(said) == 1 for said in words.values())
    assert len({said for (said,) in words.values()}) == len(words)
    assert {one.style for one in HANDS if one.core} == {"3d", "silhouette", "gradient", "cartoon"}
    assert {one.style for one in HANDS if one.family == "fluent"} == {"3d", "glossy", "flat", "silhouette"}
    assert len({one.name for one in HANDS}) == len({one.source for one in HANDS}) == len(HANDS)


@pytest.mark.parametrize(
    ("label", "name"),
    [("piñata", "pinata"), ("woman’s hat", "womans-hat"), ("T-Rex", "t-rex"), ("sun & cloud ", "sun-cloud")],
)
def test_labels_are_spelt_as_icon_sets_do(label: str, name: str) -> None:
    assert slug(label) == name


@pytest.mark.parametrize(
    ("code", "plain"), [("2764-FE0F", "2764"), ("1F34E", "1f34e"), ("26F9-fe0f-200D", "26f9-200d")]
)
def test_code_points_lose_their_variation(code: str, plain: str) -> None:
    assert plain_code(code) == plain


def test_an_icon_is_a_whole_picture_of_its_own_or_its_tables_size() -> None:
    for name, box in (("red-apple", "0 0 36 36"), ("ghost", "3 0 20 36")):
        assert ElementTree.fromstring(svg(ICONS, name)).get("viewBox") == box


@pytest.mark.parametrize("named_by", ["file", "chars", "slug"])
def test_every_hand_finds_its_pictures(named_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [concept("1f34e", "red apple"), concept("1f47b", "ghost"), concept("1f5ff", "moai")]
    packed = {
        "package/assets/1f34e.webp": b"apple",
        "package/assets/1F47B-FE0F.webp": b"ghost",
        "icons.json": json.dumps(ICONS).encode(),
        "chars.json": json.dumps({"1f34e": "red-apple", "1f47b-fe0f": "ghost", "1f5ff": "of another set"}).encode(),
    }
    monkeypatch.setattr(styles, "fetch", lambda package, cache: cache / package.name)
    monkeypatch.setattr(styles, "read", lambda archive, ends: {n: d for n, d in packed.items() if n.endswith(ends)})
    found = pictures(hand(named_by), asked, tmp_path)
    assert [*found] == ["1f34e", "1f47b"]
    assert found["1f47b"] == (b"ghost" if named_by == "file" else svg(ICONS, "ghost"))
