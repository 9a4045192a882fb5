"""The colour of a picture in words, and the same picture in another colour.

Most things are always drawn in one colour, so a model that never sees a blue apple cannot learn what "blue" does.
Turning the hue of a clearly coloured picture, and saying so in its caption, teaches it. Training only: such copies are
never among the real pictures of a metric.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Where each colour word begins on the hue circle, degrees; what lies before the first is the last's, "red".
BEGINS = {"orange": 14, "yellow": 40, "green": 63, "blue": 165, "purple": 255, "pink": 295, "red": 338}
# The hue that a picture is turned to for each word, degrees.
HUES = {"red": 0.0, "orange": 27.0, "yellow": 52.0, "green": 115.0, "blue": 215.0, "purple": 275.0, "pink": 325.0}
COHERENT = 0.86  # length of the mean hue vector above which a picture has one colour
COLOURED = 0.5  # share of its drawn pixels that have a colour at all


@dataclass(frozen=True)
class Colour:
    """The one colour of a picture: hue in degrees, saturation and value in 0..1."""

    hue: float
    saturation: float
    value: float

    @property
    def word(self) -> str:
        """What a person calls it; a dark orange is brown, a pale red is pink."""
        reddish = self.hue < 18 or self.hue >= 338
        if self.value < 0.65 and (10 <= self.hue < 45 or (reddish and self.saturation < 0.7)):
            return "brown"
        if reddish and self.saturation < 0.5:
            return "pink"
        return next((word for word, begin in reversed(BEGINS.items()) if self.hue >= begin), "red")


def colour_of(image: NDArray[np.uint8]) -> Colour | None:
    """The colour of an `[H, W, 3]` picture on white, or None if it has no single one."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV"), dtype=np.float64)
    hue, saturation, value = hsv[..., 0] * (2 * np.pi / 255), hsv[..., 1] / 255, hsv[..., 2] / 255
    drawn = (saturation > 0.06) | (value < 0.94)
    coloured = (saturation > 0.25) & (value > 0.2)
    if coloured.sum() < COLOURED * max(int(drawn.sum()), 1):
        return None
    weight = saturation[coloured] * value[coloured]
    mean = np.average(np.exp(1j * hue[coloured]), weights=weight)
    if abs(mean) < COHERENT:
        return None
    degrees = float(np.degrees(np.angle(mean)) % 360)
    return Colour(degrees, float(saturation[coloured].mean()), float(value[coloured].mean()))


def recolour(image: NDArray[np.uint8], colour: Colour, word: str) -> NDArray[np.uint8]:
    """The `[H, W, 3]` picture with the hue of its `colour` turned to that of `word`; whites and greys stay."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).copy()
    turn = round((HUES[word] - colour.hue) / 360 * 255)
    hsv[..., 0] = (hsv[..., 0].astype(np.int64) + turn) % 256
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
