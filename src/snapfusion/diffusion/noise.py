"""The noise that a seed stands for: `torch.randn` on a CPU generator, without torch.

A seed then means on every runtime what it means in diffusers. torch draws 32-bit words from a Mersenne Twister
(`ATen/core/MT19937RNGEngine.h`) and makes them normal by Box-Muller (`ATen/native/cpu/DistributionTemplates.h`),
in two ways: from 16 numbers on in single precision and in blocks of 16, below that in double precision, in pairs.
"""

import math

import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # 8 radii, then their 8 angles


def randn(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Returns standard normal noise, float32, equal to torch's to 1e-6.

    The same as `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`, which reads only the low
    32 bits of the seed. Raises `ValueError` where the seed is outside 0..2^64-1.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"got seed {seed}, expected 0..2^64-1; choose a seed in that range")
    size = math.prod(shape)
    # RandomState and not a Generator: its seeding and stream are frozen for ever, and torch's are the same.
    twister = np.random.RandomState(seed & 0xFFFFFFFF)
    draw = _in_blocks if size >= BLOCK else _in_pairs
    return draw(twister, size).astype(np.float32).reshape(shape)


def _in_blocks(twister: np.random.RandomState, size: int) -> NDArray[np.float64]:
    """`normal_fill`: whole blocks; where the last is cut short, the final 16 numbers are drawn anew."""
    uniforms = _uniform24(twister, size)
    normal = np.empty(size)
    whole = size - size % BLOCK
    normal[:whole] = _box_muller_blocks(uniforms[:whole])
    if whole < size:
        normal[-BLOCK:] = _box_muller_blocks(_uniform24(twister, BLOCK))
    return normal


def _box_muller_blocks(uniforms: NDArray[np.float32]) -> NDArray[np.float64]:
    radii, angles = np.split(uniforms.reshape(-1, BLOCK), 2, axis=1)
    # torch rounds the angle to single precision; so must we, or be 1e-6 away. Everything after it is float64 here,
    # because NumPy's float32 sine differs from one instruction set to the next.
    theta = (np.float32(2 * math.pi) * angles).astype(np.float64)
    return np.hstack(_box_muller(1 - radii.astype(np.float64), theta)).ravel()


def _in_pairs(twister: np.random.RandomState, size: int) -> NDArray[np.float64]:
    """`normal_distribution<double>`: a cosine, then the sine that it kept for the next call."""
    angle, radius = _uniform53(twister, size + size % 2).reshape(-1, 2).T
    return np.stack(_box_muller(1 - radius, 2 * math.pi * angle), axis=1).ravel()[:size]


def _box_muller(u: NDArray[np.float64], theta: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two independent normal numbers from `u` uniform in (0, 1] and `theta` uniform in [0, 2 pi)."""
    radius = np.sqrt(-2 * np.log(u))
    return radius * np.cos(theta), radius * np.sin(theta)


def _words(twister: np.random.RandomState, size: int) -> NDArray[np.uint32]:
    return twister.randint(0, 1 << 32, size, dtype=np.uint32)


def _uniform24(twister: np.random.RandomState, size: int) -> NDArray[np.float32]:
    """`uniform_real_distribution<float>`: the low 24 bits of each word, in [0, 1)."""
    return (_words(twister, size) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _uniform53(twister: np.random.RandomState, size: int) -> NDArray[np.float64]:
    """`uniform_real_distribution<double>`: the low 53 bits of two words, high word first, in [0, 1)."""
    high, low = _words(twister, 2 * size).astype(np.uint64).reshape(-1, 2).T
    return (((high << 32) | low) & ((1 << 53) - 1)).astype(np.float64) * 2**-53
