"""A block's value by hand, its interval as scipy has it, and rank correlations as scipy has them."""

import math

import numpy as np
import pytest
from scipy import stats

from snapfusion.stages.evolve.scores import Score, score, spearman


def test_a_score_is_the_share_of_alignment_lost_over_the_milliseconds_saved() -> None:
    whole, without = np.array([0.4, 0.2, 0.6], np.float32), np.array([0.3, 0.2, 0.1], np.float32)
    real = np.array([0.5, 0.5, 0.5], np.float32)
    found = score("mid_block.attentions.0", whole, without, real, saving=4.0)
    assert found.drop.value == pytest.approx((0.1 + 0.0 + 0.5) / 1.5)
    assert found.value == pytest.approx(0.4 / 4)
    assert found.spread == (found.drop.low / 4, found.drop.high / 4)
    assert found.spread[0] <= found.value <= found.spread[1]


def test_common_random_numbers_make_the_difference_exact_where_pictures_only_shift() -> None:
    """Pictures differ wildly, but each by the same amount: the spread of the difference is nothing."""
    whole = np.random.default_rng(0).normal(0, 1, 64).astype(np.float32)
    found = score("x", whole, whole - np.float32(0.25), np.ones(64, np.float32), saving=1.0)
    assert found.drop.value == pytest.approx(0.25, abs=1e-6)
    assert found.drop.high - found.drop.low < 1e-6


def test_the_spread_is_the_bootstrap_interval_of_the_mean_difference() -> None:
    random = np.random.default_rng(1)
    whole, without = random.normal(0.5, 0.2, 200), random.normal(0.4, 0.2, 200)
    found = score("x", whole, without, np.ones(200), saving=1.0)
    by_scipy = stats.bootstrap((whole - without,), np.mean, method="percentile", n_resamples=2000, rng=2)
    assert found.drop.low == pytest.approx(by_scipy.confidence_interval.low, abs=0.006)
    assert found.drop.high == pytest.approx(by_scipy.confidence_interval.high, abs=0.006)


@pytest.mark.parametrize("saving", [0.0, -0.1])
def test_where_nothing_is_saved_a_block_is_beyond_price(saving: float) -> None:
    found = score("x", np.ones(3), np.ones(3), np.ones(3), saving)
    assert found.value == math.inf
    assert found.spread == (math.inf, math.inf)


def test_a_score_comes_back_from_json() -> None:
    found = score("x", np.array([0.5, 0.25]), np.array([0.5, 0.0]), np.array([1.0, 0.5]), 2.0)
    assert Score.from_dict(found.to_dict()) == found


def test_rank_correlation_is_scipys_ties_and_all() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        a, b = random.integers(0, 8, 25).tolist(), random.integers(0, 8, 25).tolist()
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman([1, 2, 3], [10, 20, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
