"""A figure and how far to trust it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval over the choice of pictures."""

    value: float
    low: float
    high: float


def draws(count: int, replicates: int, seed: int) -> NDArray[np.float64]:
    """Bootstrap draws of `count` pictures with replacement: how often each replicate has each picture, `[R, N]`."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.float64)


def ratio_of_means(
    numerator: NDArray[np.floating], denominator: NDArray[np.floating], replicates: int = 1000, seed: int = 0
) -> Estimate:
    """Mean of one figure over the mean of another, both `[N]` of the same N pictures, with its bootstrap interval."""
    assert numerator.shape == denominator.shape, (numerator.shape, denominator.shape)
    drawn = draws(len(numerator), replicates, seed)
    low, high = np.percentile((drawn @ numerator) / (drawn @ denominator), (2.5, 97.5))
    return Estimate(float(numerator.mean() / denominator.mean()), float(low), float(high))


def share(hits: NDArray[np.bool_], replicates: int = 1000, seed: int = 0) -> Estimate:
    """Share of the pictures, `[N]`, for which something holds."""
    return mean(hits, replicates, seed)


def mean(values: NDArray[np.floating | np.bool_], replicates: int = 1000, seed: int = 0) -> Estimate:
    """Mean of a figure, `[N]`, of N pictures."""
    return ratio_of_means(values.astype(np.float64), np.ones(len(values)), replicates, seed)


def wilson(hits: int, count: int) -> Estimate:
    """Share of `hits` in `count` trials with Wilson's 95% interval (1927), which holds for few trials and rare hits.

    Nothing is known of no trials: a half, from 0 to 1.
    """
    if count == 0:
        return Estimate(0.5, 0.0, 1.0)
    z = 1.959963984540054  # 97.5% of a normal distribution lies below
    rate, shrink = hits / count, 1 / (1 + z**2 / count)
    centre = (rate + z**2 / (2 * count)) * shrink
    margin = z * shrink * (rate * (1 - rate) / count + z**2 / (4 * count**2)) ** 0.5
    return Estimate(rate, max(0.0, centre - margin), min(1.0, centre + margin))
