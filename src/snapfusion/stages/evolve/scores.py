"""What a block is worth: the alignment that goes with it over the milliseconds (or megabytes) that go with it.

    value = delta CLIP / delta latency                                                    (paper, section 3.2)

CLIP's place is taken by judge A's alignment. All networks draw the same prompts from the same seeds, and all bootstrap
replicates draw the same prompts: differences between blocks are then far less noisy than the figures themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfusion.metrics.estimate import Estimate, ratio_of_means

Merits = NDArray[np.floating]
"""A figure for each of N things, larger is better: such as what judge A finds in each of N pictures, `[N]`."""


@dataclass(frozen=True)
class Score:
    """What is lost and what is saved without a block."""

    block: str
    drop: Estimate
    """Alignment that is lost; below zero where pictures are better without the block."""
    saving: float
    """Milliseconds or megabytes."""

    @property
    def value(self) -> float:
        """Alignment lost for each unit saved; infinite where nothing is saved, for then there is nothing to win."""
        return self.drop.value / self.saving if self.saving > 0 else math.inf

    @property
    def spread(self) -> tuple[float, float]:
        """95% interval of the value."""
        return (self.drop.low / self.saving, self.drop.high / self.saving) if self.saving > 0 else (math.inf, math.inf)

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Score":
        """What `to_dict` wrote."""
        return cls(data["block"], Estimate(**data["drop"]), data["saving"])


def score(block: str, whole: Merits, without: Merits, scale: Merits, saving: float) -> Score:
    """The score of a block, from the merits of the same things with it and without it, over those of `scale`."""
    return Score(block, ratio_of_means(whole - without, scale), saving)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation of two lists of figures for the same things; equal figures share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    below, up_to = (np.searchsorted(np.sort(array), array, side) for side in ("left", "right"))
    return (below + up_to - 1) / 2
