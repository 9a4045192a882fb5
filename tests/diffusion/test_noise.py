"""A seed's noise against torch's CPU generator: vectors that torch drew, and torch itself."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapfusion.diffusion.noise import randn

# (seed, shape, first numbers, last numbers), drawn by torch.randn of torch 2.13 on x86-64.
VECTORS = [
    (0, (3,), [1.5409961, -0.2934289, -2.1787894], []),
    (42, (4,), [0.3366904, 0.1288094, 0.2344624, 0.230333], []),
    (0, (1, 4, 8, 8), [-1.1258398, -1.1523602, -0.2505786, -0.4338788], [0.1447429, 1.9028565, 0.3903958]),
    (42, (4, 64, 64), [1.9269153, 1.4872841, 0.9007172, -2.105521], [-0.6357505, 0.9728097, -0.2934061]),
    (1234, (20,), [-0.1117186, -0.4965901, 0.1630737, -0.8816878], [1.4777843, -0.1696236, -0.9918573]),
    (2**32 + 7, (17,), [-0.8201345, -0.3245666, 1.9263681, -0.3300117], [-1.3233458, -1.359769, -0.8667016]),
    (2**64 - 1, (16,), [-2.6642976, -1.0910486, 0.4514474, 0.2283607], [0.4837522, 0.8417866, 0.1409096]),
]


@pytest.mark.parametrize(("seed", "shape", "first", "last"), VECTORS)
def test_known_numbers(seed, shape, first, last):
    noise = randn(shape, seed)
    assert noise.shape == shape
    assert noise.dtype == np.float32
    np.testing.assert_allclose(noise.ravel()[: len(first)], first, rtol=0, atol=1e-6)
    np.testing.assert_allclose(noise.ravel()[noise.size - len(last) :], last, rtol=0, atol=1e-6)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1) | st.integers(0, 100),
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple) | st.tuples(st.integers(0, 70)),
)
@example(seed=0, shape=(1, 4, 64, 64))
@example(seed=1, shape=(15,))
@example(seed=1, shape=(16,))
@example(seed=1, shape=(31,))
@example(seed=1, shape=())
def test_any_shape_and_seed_is_that_of_torch(seed, shape):
    expected = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    np.testing.assert_allclose(randn(shape, seed), expected, rtol=0, atol=1e-6, strict=True)


def test_many_numbers_are_those_of_torch():
    """Long enough for the rare large numbers, where a rounded angle matters most."""
    expected = torch.randn(200_003, generator=torch.Generator("cpu").manual_seed(7)).numpy()
    noise = randn((200_003,), 7)
    assert np.abs(noise).max() > 4.2
    np.testing.assert_allclose(noise, expected, rtol=0, atol=1e-6)


def test_only_the_low_half_of_a_seed_counts():
    np.testing.assert_array_equal(randn((4, 4), 5 + 2**32), randn((4, 4), 5))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_an_impossible_seed_is_refused(seed):
    with pytest.raises(ValueError, match=f"got seed {seed}, expected"):
        randn((4,), seed)
