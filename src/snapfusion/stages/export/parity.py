"""How far a bundle is from torch in float32: every network on equal inputs, and whole pictures from equal noise."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from snapfusion.bundle import PARTS, Bundle, Network, Networks
from snapfusion.generate import generate
from snapfusion.runtimes.choice import Precision
from snapfusion.runtimes.quantisation import psnr
from snapfusion.settings import Settings

WHOLE = ("fp32", "fp16", "bf16")  # no weight is rounded to a few values
FLOORS_DB = {precision: 35.0 if precision in WHOLE else 28.0 for precision in get_args(Precision)}
"""For one network, by how its weights are stored; it computes in bfloat16 where runtime and CPU can."""
PICTURE_FLOOR_DB = 30.0
ROUNDED_PICTURE_FLOOR_DB = 20.0
"""Where the UNet is w8a8 or int4, or the words are in 4 bits: what is a little off at each step ends in another
picture, which may be as good."""


class Comparison:
    """Two networks in one: both get the same inputs, their difference is counted, the right one's output is passed on.

    So a sampler that runs on it visits exactly the latents of the right one.
    """

    def __init__(self, network: Network, right: Network) -> None:
        self.network, self.right = network, right
        self.size, self.squared_error, self.squared_sum = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        output, right = self.network(**inputs), self.right(**inputs)
        wide = right.astype(np.float64)
        self.size += wide.size
        self.squared_error += float(np.sum((output - wide) ** 2))
        self.squared_sum += float(np.sum(wide**2))
        self.low, self.high = min(self.low, float(wide.min())), max(self.high, float(wide.max()))
        return right

    @property
    def psnr(self) -> float:
        """dB over all calls; the peak is the range of the right outputs, which have no fixed one."""
        return psnr(self.squared_error / self.size, peak=self.high - self.low)

    @property
    def relative_error(self) -> float:
        """||output - right|| / ||right|| over all calls."""
        return math.sqrt(self.squared_error / self.squared_sum)


def measure(bundle: Bundle, networks: Networks, right: Networks, pictures: Sequence[Settings]) -> dict[str, Any]:
    """Draw `pictures` with both and return, in dB, what each network and the pictures have in common."""
    compared = [Comparison(a, b) for a, b in zip(_each(networks), _each(right), strict=True)]
    picture_db = []
    for settings in pictures:
        expected = np.asarray(generate(bundle, Networks(*compared), settings), np.float64)
        drawn = np.asarray(generate(bundle, networks, settings), np.float64)
        picture_db.append(psnr(float(np.mean((drawn - expected) ** 2)), peak=255))
    figures: dict[str, Any] = {
        part: {"psnr_db": round(pair.psnr, 2), "relative_error": round(pair.relative_error, 6)}
        for part, pair in zip(PARTS, compared, strict=True)
    }
    return {**figures, "pictures": {"median_psnr_db": round(median(picture_db), 2), "n": len(picture_db)}}


def check(figures: Mapping[str, Any], weights: Mapping[str, str]) -> None:
    """Refuse a bundle that is further from torch than the floors. Raises `ValueError`."""
    for part in PARTS:
        got, floor = figures[part]["psnr_db"], FLOORS_DB[weights[part]]
        if got < floor:
            advice = "; store its weights in more bits" if weights[part] not in (*WHOLE, "palette6") else ""
            raise ValueError(f"got a {part} {got} dB from torch's, expected at least {floor:g} dB{advice}")
    rounded = weights["unet"] in ("w8a8", "int4") or weights["text_encoder"] == "int4-words"
    floor = ROUNDED_PICTURE_FLOOR_DB if rounded else PICTURE_FLOOR_DB
    if (got := figures["pictures"]["median_psnr_db"]) < floor:
        raise ValueError(f"got pictures {got} dB from torch's, expected at least {floor:g} dB")


def _each(networks: Networks) -> tuple[Network, Network, Network]:
    return networks.text_encoder, networks.unet, networks.vae_decoder
