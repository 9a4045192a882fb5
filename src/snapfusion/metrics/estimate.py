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
    return ratio_of_means(hits.astype(np.float64), np.ones(len(hits)), replicates, seed)
