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


@dataclass(frozen=True)
class Pixels:
    """The pixels of a picture on white, all `[H, W]`: hue in degrees, saturation and value in 0..1."""

    hue: NDArray[np.float64]
    saturation: NDArray[np.float64]
    value: NDArray[np.float64]

    @classmethod
    def of(cls, image: NDArray[np.uint8]) -> "Pixels":
        """Those of an `[H, W, 3]` picture."""
        hsv = np.asarray(Image.fromarray(image).convert("HSV"), dtype=np.float64)
        return cls(hsv[..., 0] * (360 / 255), hsv[..., 1] / 255, hsv[..., 2] / 255)

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """Where something is drawn."""
        return (self.saturation > 0.06) | (self.value < 0.94)

    @property
    def coloured(self) -> NDArray[np.bool_]:
        """Where what is drawn has a hue that one sees."""
        return (self.saturation > 0.25) & (self.value > 0.2)


def colour_of(image: NDArray[np.uint8]) -> Colour | None:
    """The colour of an `[H, W, 3]` picture on white, or None if it has no single one."""
    pixels = Pixels.of(image)
    coloured = pixels.coloured
    if coloured.sum() < COLOURED * max(int(pixels.drawn.sum()), 1):
        return None
    saturation, value = pixels.saturation[coloured], pixels.value[coloured]
    mean = np.average(np.exp(1j * np.radians(pixels.hue[coloured])), weights=saturation * value)
    if abs(mean) < COHERENT:
        return None
    degrees = float(np.degrees(np.angle(mean)) % 360)
    return Colour(degrees, float(saturation.mean()), float(value.mean()))


def recolour(image: NDArray[np.uint8], colour: Colour, word: str) -> NDArray[np.uint8]:
    """The `[H, W, 3]` picture with the hue of its `colour` turned to that of `word`; whites and greys stay."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).copy()
    turn = round((HUES[word] - colour.hue) / 360 * 255)
    hsv[..., 0] = (hsv[..., 0].astype(np.int64) + turn) % 256
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
