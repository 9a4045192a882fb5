"""What is drawn, and what it is held against: the protocols of the paper's tables, and of ours."""

from dataclasses import dataclass


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
