"""What is drawn, and what it is held against: the protocols of the paper's tables, and of ours."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from snapfusion.data.pairs import Pair


@dataclass(frozen=True)
class Protocol:
    """Which prompts are drawn and what is measured on the pictures. KID, alignment, R@10 and style always are."""

    name: str
    split: str
    """train, cells or concepts: where the prompts come from, and the real pictures that they are held against."""
    pictures: int | None
    """How many prompts, without replacement; None for all."""
    fid: bool = False
    """Whether to work out FID, which needs thousands of pictures to mean anything."""

    def describe(self, drawn: int, real: int) -> str:
        """One line for beside a figure."""
        return f"{self.name}: {drawn} pictures, one for each of as many {self.split} prompts, against {real} real ones"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("headline", "train", 5000, fid=True),
        Protocol("quick", "train", 1000),
        Protocol("cells", "cells", None),
        Protocol("concepts", "concepts", None),
    )
}


def chosen(pairs: Sequence[Pair], count: int | None, purpose: str) -> list[Pair]:
    """`count` of the pairs without replacement, or all if there are fewer; the same ones for the same purpose."""
    return sorted(pairs, key=lambda pair: number(purpose, pair.key))[:count]


def seed_of(pair: Pair) -> int:
    """The seed with which a pair's prompt is drawn, 32 bits, the same in every protocol and for every model."""
    return number("seed", pair.key) % 2**32


def number(*words: str) -> int:
    """A large number that depends on the words alone."""
    return int.from_bytes(hashlib.sha256("|".join(words).encode()).digest()[:8], "big")
