"""Which pictures are asked for, and with which seeds: settled by hashes, the same for every model and for ever."""

import hashlib
from collections.abc import Sequence

from snapfusion.data.pairs import Pair


def chosen(pairs: Sequence[Pair], count: int | None, purpose: str) -> list[Pair]:
    """`count` of the pairs without replacement, or all if there are fewer; the same ones for the same purpose."""
    return sorted(pairs, key=lambda pair: number(purpose, pair.key))[:count]


def seed_of(pair: Pair) -> int:
    """The seed with which a pair's prompt is drawn, 32 bits, the same in every protocol and for every model."""
    return number("seed", pair.key) % 2**32


def number(*words: str) -> int:
    """A large number that depends on the words alone."""
    return int.from_bytes(hashlib.sha256("|".join(words).encode()).digest()[:8], "big")
