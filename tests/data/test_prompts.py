"""Captions vary, say what they must, and depend on their seed alone."""

import numpy as np
import pytest

from snapfusion.data.pairs import Pair
from snapfusion.data.prompts import caption, prompt_of, with_article

APPLE = Pair(
    key="1f34e_3d", code="1f34e", label="red apple", tags=("fruit", "food"), base="1f34e", style="3d", family="fluent",
    colour="red", core=True, split="train", source="", licence="MIT", shard="",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fox", "a fox"),
        ("octopus", "an octopus"),
        ("unicorn", "a unicorn"),
        ("grapes", "grapes"),
        ("glass", "a glass"),
        ("3D render", "a 3D render"),
    ],
)
def test_articles(words: str, expected: str) -> None:
    assert with_article(words) == expected


def test_the_prompt_of_a_picture() -> None:
    assert prompt_of(APPLE) == "a red apple, 3D render"


def test_captions_depend_on_the_seed_alone_and_vary() -> None:
    first = [caption(APPLE, np.random.default_rng((7, k))) for k in range(40)]
    assert first == [caption(APPLE, np.random.default_rng((7, k))) for k in range(40)]
    assert len(set(first)) > 20
    assert 0.6 < sum("3D" in sentence for sentence in first) / 40 < 1


def test_a_recoloured_copy_says_its_new_colour_and_not_the_old_one() -> None:
    for k in range(40):
        sentence = caption(APPLE, np.random.default_rng(k), colour="blue")
        assert "blue apple" in sentence.lower()
        assert "red apple" not in sentence
