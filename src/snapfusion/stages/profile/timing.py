"""Milliseconds, in turns: what slows the machine down for a while slows all that is compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfusion.stages.profile.engines import Run

WARM, LEAST = 2, 5  # calls that do not count, and rounds that do at the least


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a run."""

    median: float
    spread: float
    """The range of the middle half."""


def rounds(runs: Sequence[Run], seconds: float) -> NDArray[np.float64]:
    """Call all `runs` in turn, for about `seconds` and at least `LEAST` times: milliseconds `[rounds, runs]`."""
    for _ in range(WARM):
        for run in runs:
            run()
    taken: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(taken) < LEAST or time.perf_counter() < end:
        taken.append([_milliseconds(run) for run in runs])
    return np.array(taken)


def timing(milliseconds: NDArray[np.float64]) -> Timing:
    """What a column of `rounds` comes to, or a difference of two, which is free of what slowed down both."""
    low, median, high = np.quantile(milliseconds, (0.25, 0.5, 0.75))
    return Timing(float(median), float(high - low))


def _milliseconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)
