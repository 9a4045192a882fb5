"""A picture's colour has a name, and can be turned into another."""

import numpy as np
import pytest
from numpy.typing import NDArray

from snapfusion.data.colours import HUES, colour_of, recolour


def disc(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    image = np.full((32, 32, 3), 255, np.uint8)
    y, x = np.mgrid[:32, :32]
    image[(x - 16) ** 2 + (y - 16) ** 2 < 120] = colour
    return image


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((220, 30, 30), "red"),
        ((250, 140, 20), "orange"),
        ((250, 220, 40), "yellow"),
        ((40, 170, 60), "green"),
        ((40, 90, 230), "blue"),
        ((130, 60, 210), "purple"),
        ((240, 60, 170), "pink"),
        ((255, 160, 160), "pink"),  # a pale red
        ((120, 75, 40), "brown"),  # a dark orange
    ],
)
def test_colours_have_their_everyday_names(rgb: tuple[int, int, int], word: str) -> None:
    colour = colour_of(disc(rgb))
    assert colour is not None
    assert colour.word == word


def test_grey_and_many_coloured_pictures_have_no_colour() -> None:
    assert colour_of(disc((120, 120, 120))) is None
    half = disc((220, 30, 30))
    half[:16][half[:16, :, 1] < 200] = (40, 90, 230)
    assert colour_of(half) is None
    assert colour_of(np.full((8, 8, 3), 255, np.uint8)) is None


@pytest.mark.parametrize("word", HUES)
def test_recolouring_gives_the_colour_it_says(word: str) -> None:
    apple = disc((200, 30, 40))
    colour = colour_of(apple)
    assert colour is not None
    turned = colour_of(recolour(apple, colour, word))
    assert turned is not None
    assert turned.word == word


def test_recolouring_leaves_white_white() -> None:
    apple = disc((200, 30, 40))
    colour = colour_of(apple)
    assert colour is not None
    assert (recolour(apple, colour, "blue")[0, 0] == 255).all()
