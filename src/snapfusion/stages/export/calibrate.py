"""What the networks meet when they draw: recorded from torch, to quantise by."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfusion.bundle import PARTS, Bundle, Network, Networks, Part
from snapfusion.generate import generate
from snapfusion.runtimes.quantisation import Calibration
from snapfusion.settings import settings_for

# Not those that parity is measured on.
PROMPTS = (
    "a green parrot, cartoon",
    "a slice of watermelon, 3D render",
    "a lighthouse by the sea, flat",
    "a panda, 3D render",
    "a steam train, black silhouette",
    "a strawberry, flat",
    "a snowy mountain, soft gradient",
    "a purple octopus, cartoon",
    "a hot air balloon, 3D render",
    "a loaf of bread, soft gradient",
    "a sleeping dog, black silhouette",
    "a bunch of grapes, cartoon",
)
CHECKED = 4  # of every so many prompts, the last is for checks
SAMPLES = 64  # of the UNet's inputs, over all steps of all prompts
CHECKS = 12

Call = tuple[dict[str, NDArray[Any]], NDArray[np.float32]]


class Recorder:
    """A network that remembers its inputs and outputs."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.calls: list[Call] = []

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        output = self.network(**inputs)
        self.calls.append(({name: np.array(array) for name, array in inputs.items()}, output))
        return output


def record(bundle: Bundle, right: Networks, prompts: Sequence[str] = PROMPTS) -> dict[str, list[list[Call]]]:
    """By part, for every prompt the calls that drawing it takes, with the bundle's own steps and guidance."""
    recorders = {part: Recorder(getattr(right, part)) for part in PARTS}
    recorded: dict[str, list[list[Call]]] = {part: [] for part in PARTS}
    for seed, prompt in enumerate(prompts):
        (settings,) = settings_for(bundle, prompt, seed=seed)
        generate(bundle, Networks(**recorders), settings)
        for part, recorder in recorders.items():
            recorded[part].append(recorder.calls)
            recorder.calls = []
    return recorded


def calibrations(
    recorded: Mapping[str, Sequence[Sequence[Call]]], floor_db: float, half_range: bool = False
) -> dict[Part, Calibration]:
    """For every part, what three of four prompts show to calibrate by, and the fourth to check by."""
    found: dict[Part, Calibration] = {}
    for part in PARTS:
        of_prompts = list(enumerate(recorded[part], 1))
        samples = [inputs for k, calls in of_prompts if k % CHECKED for inputs, _ in calls]
        checks = [call for k, calls in of_prompts if k % CHECKED == 0 for call in calls]
        found[part] = Calibration(_spread(samples, SAMPLES), _spread(checks, CHECKS), floor_db, half_range)
    return found


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    """At most `n` of the items, evenly spread: steps of drawing, which differ from first to last."""
    places = np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int)
    return [items[place] for place in places]
