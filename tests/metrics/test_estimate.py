import numpy as np
import pytest
from scipy.stats import binomtest

from snapfusion.metrics.estimate import Estimate, draws, mean, ratio_of_means, share, wilson


def test_draws_are_counts_of_pictures_drawn_with_replacement() -> None:
    drawn = draws(50, 200, seed=0)
    assert drawn.shape == (200, 50)
    assert (drawn.sum(axis=1) == 50).all()
    # The share of pictures left out of a draw is (1 - 1/50)^50 = 0.364.
    assert (drawn == 0).mean() == pytest.approx(0.364, abs=0.01)


def test_interval_of_a_share_is_the_binomials() -> None:
    estimate = share(np.arange(400) < 100)
    assert estimate.value == 0.25
    # 0.25 -+ 1.96 sqrt(0.25 * 0.75 / 400)
    assert (estimate.low, estimate.high) == pytest.approx((0.2076, 0.2924), abs=0.006)


def test_ratio_is_of_the_means_and_keeps_pictures_together() -> None:
    real = np.array([1.0, 2.0, 3.0, 10.0])
    assert ratio_of_means(real / 2, real).value == 0.5
    # Drawn together, numerator and denominator give the same ratio every time.
    estimate = ratio_of_means(real / 2, real)
    assert (estimate.low, estimate.high) == pytest.approx((0.5, 0.5))
    assert ratio_of_means(np.array([0.0, 4.0]), np.array([1.0, 3.0])).value == 1.0


def test_a_mean_has_the_interval_of_the_central_limit() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 900)
    estimate = mean(values)
    assert estimate.value == pytest.approx(values.mean())
    margin = 1.96 * values.std() / 30
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.02)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 10), (7, 10), (31, 40), (500, 1000)])
def test_wilsons_interval_is_scipys(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    estimate = wilson(hits, count)
    assert estimate.value == hits / count
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_trials_say_nothing() -> None:
    assert wilson(0, 0) == Estimate(0.5, 0.0, 1.0)
