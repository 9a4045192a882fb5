"""Every figure of a protocol, each with its interval and one line that says how it was come by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snapfusion.data.pairs import Pair
from snapfusion.metrics.alignment import GALLERY, alignment, half_of
from snapfusion.metrics.estimate import Estimate, share
from snapfusion.metrics.features import Vectors
from snapfusion.metrics.frechet import fid, kid
from snapfusion.metrics.memorisation import nearest
from snapfusion.stages.evaluate.bench import Bench
from snapfusion.stages.evaluate.protocol import Protocol

FID_REPLICATES = 20
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


def measure(
    protocol: Protocol, bench: Bench, drawn: Sequence[Pair], vectors: Vectors, reference: Sequence[Pair]
) -> dict[str, Figure]:
    """All figures of a protocol.

    Args:
        bench: judge B's, for its Inception vectors are what FID and KID are worked out on.
        drawn: what was asked for.
        vectors: of the pictures drawn for it, `[len(drawn), 2048]`.
        reference: the real pictures to compare with.
    """
    real = bench.real(reference)
    return {
        **distances(protocol, vectors, real, reference),
        **verdicts(bench, drawn, vectors),
        **(memorised(drawn, vectors, reference, real) if protocol.split == "train" else {}),
    }


def neighbours(bench: Bench, pairs: Sequence[Pair], train: Sequence[Pair]) -> dict[str, tuple[str, float]]:
    """For the real picture of each pair the nearest training picture and the cosine to it: how unseen is it really?"""
    rows, cosines = nearest(bench.real(pairs), bench.real(train))
    near = zip(pairs, rows, cosines, strict=True)
    return {pair.key: (train[row].key, round(float(cosine), 4)) for pair, row, cosine in near}


def distances(protocol: Protocol, vectors: Vectors, real: Vectors, reference: Sequence[Pair]) -> dict[str, Figure]:
    """KID and, where the protocol has it, FID; beside them the floor: half of the real pictures against the rest."""
    sizes = f"{len(vectors)} drawn against {len(real)} real {protocol.split}; {INCEPTION}"
    halves = np.array([half_of(pair.key) for pair in reference])
    a, b = real[halves == 0], real[halves == 1]
    floor_sizes = f"{len(a)} against {len(b)} real {protocol.split}; {INCEPTION}"
    figures = {
        "kid": figure(kid(vectors, real), f"unbiased; {sizes}"),
        "kid_floor": figure(kid(a, b), f"unbiased; {floor_sizes}"),
    }
    if protocol.fid:
        figures["fid"] = figure(fid(vectors, real, FID_REPLICATES), sizes)
        figures["fid_floor"] = figure(fid(a, b, FID_REPLICATES), floor_sizes)
    return figures


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
