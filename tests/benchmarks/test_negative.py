"""How much of a picture has the colour that it should not have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import negative  # pyright: ignore[reportMissingImports]

        yield negative


def striped(*colours: tuple[int, int, int]) -> np.ndarray:
    """A white picture with a stripe of each colour, all as wide."""
    image = np.full((32, 32, 3), 255, np.uint8)
    for place, colour in enumerate(colours):
        image[4 * place : 4 * place + 4] = colour
    return image


@pytest.mark.parametrize(
    ("colours", "word", "share"),
    [
        (((220, 30, 30),), "red", 1.0),
        (((220, 30, 30),), "green", 0.0),
        (((220, 30, 60), (30, 200, 60)), "red", 0.5),  # hues lie on a circle: 350 degrees are near to 0
        (((220, 30, 30), (40, 90, 230), (40, 90, 230), (0, 0, 0)), "blue", 0.5),  # black is drawn, in no colour
        ((), "red", 0.0),
    ],
)
def test_white_does_not_count_and_neighbours_do(
    script: Any, colours: tuple[tuple[int, int, int], ...], word: str, share: float
) -> None:
    assert script.share_of_colour(striped(*colours), word) == pytest.approx(share)
