"""Figures of pictures, each with its interval and a line that says how it was come by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfusion.bench import Bench
from snapfusion.data.pairs import Pair
from snapfusion.metrics.alignment import GALLERY, alignment
from snapfusion.metrics.clip_score import Clip
from snapfusion.metrics.estimate import Estimate, mean, share
from snapfusion.metrics.features import Vectors
from snapfusion.metrics.frechet import fid, kid
from snapfusion.metrics.memorisation import nearest

FID_REPLICATES = 20
KID_MOST = 6000  # of pictures drawn: its kernel matrix is as wide as they are many
FEWEST = 2  # pictures that have a spread
INCEPTION = "2015 Inception pool3, bicubic to 299 px"


@dataclass(frozen=True)
class Figure:
    """A value, its 95% interval over the choice of pictures, and its protocol."""

    value: float
    low: float
    high: float
    protocol: str

    def describe(self) -> str:
        """Value, interval and protocol on a line."""
        return f"{self.value:>9.4f}  [{self.low:.4f}, {self.high:.4f}]  {self.protocol}"


def figure(estimate: Estimate, protocol: str) -> Figure:
    """An estimate with its protocol."""
    return Figure(estimate.value, estimate.low, estimate.high, protocol)


def distances(drawn: Vectors, real: Vectors, half: NDArray[np.bool_], with_fid: bool) -> dict[str, Figure]:
    """KID and, if wanted, FID; beside them the floor: the real pictures where `half` is true against the rest.

    A set of so few pictures that a half has less than two has no floor.
    """
    few = drawn[:KID_MOST]
    a, b = real[half], real[~half]
    figures = {"kid": figure(kid(few, real), f"unbiased; {len(few)} drawn against {len(real)} real; {INCEPTION}")}
    if with_fid:
        sizes = f"{len(drawn)} drawn against {len(real)} real; {INCEPTION}"
        figures["fid"] = figure(fid(drawn, real, FID_REPLICATES), sizes)
    if min(len(a), len(b)) >= FEWEST:
        sizes = f"{len(a[:KID_MOST])} against {len(b)} real; {INCEPTION}"
        figures["kid_floor"] = figure(kid(a[:KID_MOST], b), f"unbiased; {sizes}")
        if with_fid:
            figures["fid_floor"] = figure(fid(a, b, FID_REPLICATES), f"{len(a)} against {len(b)} real; {INCEPTION}")
    return figures


def clip_scores(clip: Clip, drawn: NDArray[np.float32], real: NDArray[np.float32] | None) -> dict[str, Figure]:
    """Mean cosines to the prompts, of drawn pictures `[N]` and of the real ones for those prompts if there are any."""
    line = f"mean cosine; {clip.name}"
    scores = {"clip_score": figure(mean(drawn), f"{len(drawn)} drawn; {line}")}
    if real is not None:
        scores["clip_score_real"] = figure(mean(real), f"{len(real)} real; {line}")
    return scores


def verdicts(bench: Bench, drawn: Sequence[Pair], vectors: Vectors) -> dict[str, Figure]:
    """What the judge says of drawn pictures, and of the real ones for the same prompts, none of which it has seen."""
    fair = bench.unseen(drawn)
    keys = {pair.key for pair in fair}
    generated = bench.verdict(vectors[[pair.key in keys for pair in drawn]], fair)
    real = bench.verdict(bench.real(fair), fair)
    judged = f"judge B, {len(fair)} prompts whose real pictures it has not seen"
    among = f"{judged}; 1 of {min(GALLERY, len(bench.gallery.concepts))} prompts, one a concept, in the picture's style"
    return {
        "alignment": figure(alignment(generated, real), f"{judged}; 1 is real"),
        "recall_at_10": figure(generated.recall(10), among),
        "recall_at_10_real": figure(real.recall(10), among),
        "style": figure(generated.style_accuracy(), f"{judged}; {len(bench.judge.styles)} styles"),
        "style_real": figure(real.style_accuracy(), f"{judged}; {len(bench.judge.styles)} styles"),
    }


def memorised(drawn: Sequence[Pair], vectors: Vectors, reference: Sequence[Pair], real: Vectors) -> dict[str, Figure]:
    """The share of pictures whose nearest real one is the very picture that their prompt was trained with."""
    rows, _ = nearest(vectors, real)
    hits = np.array([reference[row].key == pair.key for row, pair in zip(rows, drawn, strict=True)])
    return {
        "memorised": figure(share(hits), f"{len(drawn)} drawn, nearest of {len(real)} real; cosine of {INCEPTION}"),
    }


def neighbours(bench: Bench, pairs: Sequence[Pair], train: Sequence[Pair]) -> dict[str, tuple[str, float]]:
    """For the real picture of each pair the nearest training picture and the cosine to it: how unseen is it really?"""
    rows, cosines = nearest(bench.real(pairs), bench.real(train))
    near = zip(pairs, rows, cosines, strict=True)
    return {pair.key: (train[row].key, round(float(cosine), 4)) for pair, row, cosine in near}
