import numpy as np
import pytest
import scipy.linalg

from snapfusion.metrics.frechet import fid, kid


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    mix = random.normal(size=(24, 24))
    return random.normal(size=(200, 24)) @ mix, random.normal(size=(300, 24)) @ mix * 1.3 + 0.5


def fid_by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    means = a.mean(axis=0) - b.mean(axis=0)
    return float(means @ means + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def kid_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(np.dot(x, y)) / len(x) + 1) ** 3

    within = [
        sum(kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) / (len(s) * (len(s) - 1))
        for s in (a, b)
    ]
    return within[0] + within[1] - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))


def test_fid_equals_scipys(sets: tuple[np.ndarray, np.ndarray]) -> None:
    assert fid(*sets).value == pytest.approx(fid_by_scipy(*sets), abs=1e-3)


def test_fid_equals_scipys_with_fewer_pictures_than_dimensions() -> None:
    random = np.random.default_rng(1)
    a, b = np.abs(random.normal(size=(20, 64))), np.abs(random.normal(size=(30, 64))) * 2
    covariance = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    # sqrtm is ill-conditioned on a singular product; its eigenvalues are not, and the trace needs no more.
    cross = np.sqrt(scipy.linalg.eigvals(covariance).real.clip(0)).sum()
    means = a.mean(axis=0) - b.mean(axis=0)
    expected = means @ means + a.var(axis=0, ddof=1).sum() + b.var(axis=0, ddof=1).sum() - 2 * cross
    assert fid(a, b).value == pytest.approx(expected, abs=1e-3)


def test_fid_of_a_shifted_set_is_the_square_of_the_shift(sets: tuple[np.ndarray, np.ndarray]) -> None:
    shift = np.zeros(24)
    shift[3] = 2.0
    assert fid(sets[0] + shift, sets[0]).value == pytest.approx(4, abs=1e-6)


def test_fid_interval_lies_around_the_figure(sets: tuple[np.ndarray, np.ndarray]) -> None:
    estimate = fid(*sets, replicates=10)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.value - estimate.low == pytest.approx(estimate.high - estimate.value)
    assert estimate == fid(*sets, replicates=10)
    assert estimate != fid(*sets, replicates=10, seed=1)


def test_kid_equals_the_sum_over_pairs(sets: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = sets[0][:12], sets[1][:17]
    assert kid(a, b, replicates=0).value == pytest.approx(kid_by_hand(a, b), rel=1e-10)


def test_kid_of_float32_features_is_worked_out_in_float64() -> None:
    random = np.random.default_rng(2)
    a, b = random.random((2, 40, 16)).astype(np.float32)
    assert kid(a, b, replicates=0).value == pytest.approx(
        kid_by_hand(a.astype(np.float64), b.astype(np.float64)), abs=1e-10
    )


def test_kid_of_two_halves_of_one_set_is_0_within_its_interval() -> None:
    features = np.random.default_rng(3).normal(size=(800, 8))
    estimate = kid(features[:400], features[400:])
    assert estimate.low < 0 < estimate.high


def test_kid_bootstrap_never_compares_a_picture_with_its_copy() -> None:
    """By hand: of three pictures drawn (0, 0, 1), the pairs of different ones are 0-1 twice in each order."""
    a, b = np.random.default_rng(4).normal(size=(2, 3, 5))
    kernel = (a @ a.T / 5 + 1) ** 3
    across = ((a @ b.T / 5 + 1) ** 3).mean(axis=1)
    real = kid_by_hand(a, b) - (kernel.sum() - np.trace(kernel)) / 6 + 2 * across.mean()
    random = np.random.default_rng(0)
    expected = []
    for counts in random.multinomial(3, np.full(3, 1 / 3), size=20):
        drawn = [index for index, count in enumerate(counts) for _ in range(count)]
        pairs = [kernel[i, j] for i in drawn for j in drawn if i != j]
        if pairs:
            expected.append(np.mean(pairs) + real - 2 * np.mean(across[drawn]))
    estimate = kid(a, b, replicates=20)
    assert (estimate.low, estimate.high) == pytest.approx(np.percentile(expected, (2.5, 97.5)))


def test_kid_interval_covers_the_true_value_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    real = random.normal(size=(400, 4))
    truth = kid(random.normal(size=(1500, 4)) + 0.5, real, replicates=0).value
    hits = sum(
        estimate.low <= truth <= estimate.high
        for estimate in (kid(random.normal(size=(120, 4)) + 0.5, real, replicates=200) for _ in range(40))
    )
    assert hits >= 34  # 95% of 40 is 38; fewer than 34 has a probability below 1%


@pytest.mark.parametrize("shape", [(1, 8), (8,)])
def test_too_few_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\[N, D\\] with at least 2 pictures"):
        fid(np.zeros(shape), np.zeros((4, 8)))
