"""Variants of a distillation are comparable: each sees as many pictures, in a plan of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfusion.stages.distill_steps.config import Config

IMAGES = 3840
CONFIG = Config(images=IMAGES, steps=8)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import steps  # pyright: ignore[reportMissingImports]

        yield steps


def test_every_variant_sees_as_many_pictures_and_ends_at_eight_steps(script: Any) -> None:
    for plan in script.variants(CONFIG).values():
        assert sum(leg.config.images for leg in plan) == pytest.approx(IMAGES, abs=len(plan))
        assert plan[-1].config.steps == 8


def test_the_joined_plan_keeps_variants_apart(script: Any) -> None:
    plans = script.variants(CONFIG)
    legs = script.joined(plans)
    assert len(legs) == sum(map(len, plans.values())) == len({leg.name for leg in legs})
    known = {"base", "evolved"}
    for leg in legs:  # in an order in which each finds its student and its teacher, its own variant's
        assert {leg.student, leg.teacher} <= known
        variant = leg.name.partition("/")[0]
        for name in {leg.student, leg.teacher} - {"base", "evolved"}:
            assert name.startswith(f"{variant}/")
        known.add(leg.name)


def test_variants_differ_in_what_they_are_named_for(script: Any) -> None:
    last = {name: plan[-1].config for name, plan in script.variants(CONFIG).items()}
    assert (last["vanilla"].p, last["cfg"].p, last["direct"].p) == (0, 1, CONFIG.p)
    assert last["range-1-8"].guidance == (1, 8)
    assert last["gamma-0"].gamma == 0
    assert [leg.config.steps for leg in script.variants(CONFIG)["progressive"]] == [32, 16, 8]
