"""The protocols on a built sticker set, marked by judge B; judge A chooses the guidance."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snapfusion.bench import Bench
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.pairs import INDEX, Pair, read_images
from snapfusion.data.prompts import prompt_of
from snapfusion.metrics.alignment import half_of
from snapfusion.metrics.clip_score import Clip
from snapfusion.metrics.features import Images
from snapfusion.stage_folder import hash_of_file
from snapfusion.stages.evaluate.exam import Exam, Request, look
from snapfusion.stages.evaluate.figures import FEWEST, Figure, clip_scores, distances, memorised, verdicts
from snapfusion.stages.evaluate.protocol import Protocol


@dataclass(frozen=True)
class Marking:
    """How the pictures of a protocol are marked: what was asked for, and what is real."""

    protocol: Protocol
    bench: Bench
    """Judge B's, for its Inception vectors are what FID and KID are worked out on."""
    asked: list[Pair]
    reference: list[Pair]
    data: Path
    clip: Clip | None

    def __call__(self, pictures: Iterable[Images]) -> dict[str, Figure]:
        """All figures of pictures of the first so many prompts."""
        vectors, cosines = look(pictures, self.bench.backbone, self.clip, [prompt_of(pair) for pair in self.asked])
        asked, real = self.asked[: len(vectors)], self.bench.real(self.reference)
        half = np.array([half_of(pair.key) == 0 for pair in self.reference])
        figures = {**distances(vectors, real, half, self.protocol.fid), **verdicts(self.bench, asked, vectors)}
        if self.protocol.split == "train":
            figures |= memorised(asked, vectors, self.reference, real)
        if self.clip is not None and cosines is not None:
            figures |= clip_scores(self.clip, cosines, self._real_cosines[: len(cosines)])
        return figures

    @cached_property
    def _real_cosines(self) -> NDArray[np.float32]:
        """Of the real pictures to their own prompts, `[len(asked)]`."""
        assert self.clip is not None
        images = read_images(self.data, self.asked)
        return self.clip.cosines(list(images), [prompt_of(pair) for pair in self.asked])


def sticker_exam(protocol: Protocol, bench: Bench, data: Path, clip: Clip | None) -> Exam:
    """A protocol on the bench's pairs, of the set in `data`.

    Prompts on which judge B may report come first; the rest only fill up a protocol that needs more.

    Raises:
        ValueError: the set has too few pictures of the protocol's split.
    """
    reference = [pair for pair in bench.pairs if pair.split == protocol.split]
    if len(reference) < FEWEST:
        raise ValueError(
            f"got {len(reference)} pictures of {protocol.split} in {data} for protocol {protocol.name}, expected at "
            f"least {FEWEST}; choose others by --protocols"
        )
    fair = bench.unseen(reference)
    keys = {pair.key for pair in fair}
    rest = [pair for pair in reference if pair.key not in keys]
    asked = [*chosen(fair, None, protocol.split), *chosen(rest, None, protocol.split)][: protocol.pictures]

    def real(count: int) -> list[NDArray[np.uint8]]:
        return list(read_images(data, asked[:count])) if count else []

    return Exam(
        protocol.name,
        f"{protocol.describe(len(asked), len(reference))}; sticker set {hash_of_file(data / INDEX)[:12]}",
        [request_of(pair) for pair in asked],
        Marking(protocol, bench, asked, reference, data, clip),
        real,
    )


def request_of(pair: Pair) -> Request:
    """What is asked for in the place of a pair's real picture."""
    return Request(pair.key, prompt_of(pair), seed_of(pair))
