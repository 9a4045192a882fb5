"""What a person asks for is checked before anything is drawn."""

import math
from pathlib import Path
from typing import Any

import pytest

from snapfusion.bundle import Bundle, read_bundle
from snapfusion.settings import Settings, settings_for


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


def test_what_is_left_out_comes_from_the_bundle(bundle: Bundle) -> None:
    expected = Settings(prompt="a fox", negative="", seed=5, steps=3, guidance=2.0, scheduler="ddim")
    assert settings_for(bundle, "a fox", seed=5) == [expected]


def test_pictures_differ_by_their_seed_alone(bundle: Bundle) -> None:
    settings = settings_for(bundle, "a fox", seed=5, n=3, steps=7, guidance=2, scheduler="euler", negative="blue")
    assert settings == [Settings("a fox", "blue", seed, 7, 2.0, "euler") for seed in (5, 6, 7)]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1},
        {"steps": 1000},
        {"n": 64},
        {"guidance": 0},
        {"guidance": 50.0},
        {"guidance_stop": 1},
        {"guidance_stop": 1e-9},
        {"seed": 0},
        {"seed": 2**64 - 1},
        {"seed": 2**64 - 3, "n": 3},
        {"size": 64},
    ],
)
def test_the_bounds_belong_to_what_is_allowed(bundle: Bundle, options: dict[str, Any]) -> None:
    assert settings_for(bundle, "a fox", **{"seed": 0, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "got a blank prompt, expected some words"),
        ({"prompt": " \n\t"}, "got a blank prompt"),
        ({"steps": 0}, "got 0 steps, expected 1 to 1000"),
        ({"steps": 1001}, "got 1001 steps, expected 1 to 1000"),
        ({"steps": 2.5}, r"got 2\.5 steps"),
        ({"n": 0}, "got n 0, expected 1 to 64"),
        ({"n": 65}, "got n 65, expected 1 to 64"),
        ({"guidance": -0.1}, r"got guidance -0\.1, expected a number from 0 to 50"),
        ({"guidance": 50.1}, "got guidance 50"),
        ({"guidance": math.nan}, "got guidance nan"),
        ({"guidance": math.inf}, "got guidance inf"),
        ({"guidance_stop": 0}, "got guidance stop 0, expected a share of the steps, above 0 and at most 1"),
        ({"guidance_stop": 1.5}, r"got guidance stop 1\.5"),
        ({"guidance_stop": math.nan}, "got guidance stop nan"),
        ({"guidance_stop": "half"}, "got guidance stop 'half'"),
        ({"guidance": "strong"}, "got guidance 'strong'"),
        ({"guidance": 1, "negative": "red"}, "got a negative prompt and guidance 1, expected another guidance"),
        ({"seed": -1}, "got seed -1, expected a whole number from 0 to 2"),
        ({"seed": 2**64}, "got seed 18446744073709551616"),
        ({"seed": 2**64 - 2, "n": 3}, "the last one's too"),
        ({"seed": "x"}, "got seed 'x'"),
        ({"seed": True}, "got seed True"),
        ({"scheduler": "lcm"}, r"got scheduler 'lcm', expected ddim, dpm\+\+, euler"),
        ({"size": 512}, "got size 512, expected 64"),
        ({"prompt": "\ud800"}, "got a prompt that is no text"),
    ],
)
def test_a_mistake_is_named(bundle: Bundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_for(bundle, **{"prompt": "a fox", "seed": 0, **options})
