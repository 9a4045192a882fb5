"""FID and KID: how far a set of pictures is from a set of real ones, both as Inception features in float64."""

import numpy as np
from numpy.typing import NDArray

from snapfusion.metrics.estimate import Estimate, draws

Features = NDArray[np.floating]


# ---------------------------------------------------------------------------------------------------------------------
# FID (Heusel et al. 2017, arXiv:1706.08500, Eq. 6): |m - m_r|^2 + Tr(C + C_r - 2 (C C_r)^(1/2))


def fid(generated: Features, real: Features, replicates: int = 0, seed: int = 0) -> Estimate:
    """Frechet distance of two sets of features, `[N, D]` and `[M, D]`.

    FID is biased upward by small sets and so by resampling: the interval is the figure -+ 1.96 times the spread of its
    bootstrap replicates, not their quantiles. Without replicates it is the figure itself.
    """
    mean_real, covariance_real = _moments(real)
    values, vectors = np.linalg.eigh(covariance_real)
    root_real = (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def distance(features: Features) -> float:
        mean, covariance = _moments(features)
        # Tr (C C_r)^(1/2) = Tr (R C R)^(1/2) with R = C_r^(1/2), which is symmetric: real eigenvalues, none negative.
        cross = np.sqrt(np.linalg.eigvalsh(root_real @ covariance @ root_real).clip(0)).sum()
        shift = np.square(mean - mean_real).sum()
        return float(shift + np.trace(covariance) + np.trace(covariance_real) - 2 * cross)

    value = distance(generated)
    random = np.random.default_rng(seed)
    resampled = [distance(generated[random.integers(len(generated), size=len(generated))]) for _ in range(replicates)]
    margin = 1.96 * float(np.std(resampled, ddof=1)) if replicates > 1 else 0.0
    return Estimate(value, value - margin, value + margin)


def _moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"got features of shape {features.shape}, expected [N, D] with at least 2 pictures")
    return features.mean(axis=0), np.cov(features, rowvar=False)


# ---------------------------------------------------------------------------------------------------------------------
# KID (Binkowski et al. 2018, arXiv:1801.01401): unbiased MMD^2 with the kernel (x.y/D + 1)^3


def kid(generated: Features, real: Features, replicates: int = 1000, seed: int = 0) -> Estimate:
    """Kernel distance of two sets of features, `[N, D]` and `[M, D]`; its expectation does not depend on N and M.

    Published figures average it over subsets of 1,000 pictures; this is the same estimator over all of them at once.
    The bootstrap draws generated pictures with replacement, and a picture is never compared with its own copy.
    """
    generated, real = np.asarray(generated, dtype=np.float64), np.asarray(real, dtype=np.float64)
    within = _kernel(generated, generated)
    np.fill_diagonal(within, 0)
    across = _kernel(generated, real).mean(axis=1)
    among_real = _mean_off_diagonal(real)

    def distances(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of draws `[R, N]` that say how often each picture was drawn -> `[R]`."""
        total = weights.sum(axis=1)
        pairs = total**2 - np.square(weights).sum(axis=1)
        return ((weights @ within) * weights).sum(axis=1) / pairs + among_real - 2 * (weights @ across) / total

    count = len(generated)
    value = float(distances(np.ones((1, count)))[0])
    drawn = draws(count, replicates, seed)
    # A draw of one picture alone has no pairs; it happens to very small sets only.
    resampled = distances(drawn[np.count_nonzero(drawn, axis=1) > 1])
    low, high = np.percentile(resampled, (2.5, 97.5)) if len(resampled) else (value, value)
    return Estimate(value, float(low), float(high))


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_off_diagonal(features: NDArray[np.float64], block: int = 1024) -> float:
    """Mean kernel over all ordered pairs of different pictures, in blocks that bound the memory."""
    count = len(features)
    total = sum(_kernel(features[start : start + block], features).sum() for start in range(0, count, block))
    own = ((np.square(features).sum(axis=1) / features.shape[1] + 1) ** 3).sum()
    return float((total - own) / (count * (count - 1)))
