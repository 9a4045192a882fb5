"""Variants of one thing share a base; things that look different do not."""

import pytest

from snapfusion.data.concepts import Concept, base_of, why_dropped


@pytest.mark.parametrize(
    "variants",
    [
        # man, woman and person running, each also facing right
        [
            ("1f3c3", "person running", "person-activity"),
            ("1f3c3-200d-2642", "man running", "person-activity"),
            ("1f3c3-200d-2640", "woman running", "person-activity"),
            ("1f3c3-200d-2640-200d-27a1", "woman running: facing right", "person-activity"),
        ],
        # hair, and a beard that is a hair too
        [
            ("1f9d1", "person", "person"),
            ("1f468-200d-1f9b0", "man: red hair", "person"),
            ("1f469-200d-1f9b3", "woman: white hair", "person"),
            ("1f471", "person: blond hair", "person"),
        ],
        [
            ("1f9d1-200d-2695", "health worker", "person-role"),
            ("1f468-200d-2695", "man health worker", "person-role"),
            ("1f469-200d-2695", "woman health worker", "person-role"),
        ],
        [("1f550", "one o'clock", "time"), ("1f55c", "one-thirty", "time")],
        [("1f311", "new moon", "sky-weather"), ("1f31d", "full moon face", "sky-weather")],
        [("2764", "red heart", "heart"), ("1f5a4", "black heart", "heart")],
        [("1f7e5", "red square", "geometric"), ("25fb", "white medium square", "geometric")],
        [
            ("1f448", "backhand index pointing left", "hand-single-finger"),
            ("1f446", "backhand index pointing up", "hand"),
        ],
        [("1f408", "cat", "animal-mammal"), ("1f408-200d-2b1b", "black cat", "animal-mammal")],
    ],
)
def test_variants_share_a_base(variants: list[tuple[str, str, str]]) -> None:
    assert len({base_of(*variant) for variant in variants}) == 1


def test_different_things_do_not() -> None:
    things = [
        ("1f98a", "fox", "animal-mammal"),
        ("1f43a", "wolf", "animal-mammal"),
        ("1f494", "broken heart", "heart"),
        ("2764", "red heart", "heart"),
        ("1f9d1", "person", "person"),
        ("1f9d2", "child", "person"),
        ("1f9d1-200d-2695", "health worker", "person-role"),
    ]
    assert len({base_of(*thing) for thing in things}) == len(things)


def test_the_small_set_has_no_clocks_hands_or_signs() -> None:
    def core(label: str, group: int, subgroup: str) -> bool:
        return Concept("0", label, (), group, subgroup, "0").core

    assert core("fox", 3, "animal-mammal")
    assert core("castle", 5, "place-building")
    assert not core("alarm clock", 5, "time")
    assert not core("waving hand", 1, "hand-fingers-open")
    assert not core("full moon", 5, "sky-weather")


def test_flags_letters_and_signs_are_dropped_with_a_reason() -> None:
    subgroups = {"1": "animal-mammal", "2": "alphanum", "3": "country-flag"}
    assert why_dropped({"group": 3, "subgroup": 1}, subgroups) is None
    assert why_dropped({"group": 8, "subgroup": 2}, subgroups) == "letters and digits"
    assert why_dropped({"group": 9, "subgroup": 3}, subgroups) == "flags"
    assert why_dropped({}, subgroups) == "letters and digits"
