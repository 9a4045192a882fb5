"""A judge at work: the real pictures as its backbone sees them, its trained heads, the prompts it compares with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from snapfusion.data.choice import number
from snapfusion.data.pairs import Pair, read_images
from snapfusion.data.prompts import prompt_of
from snapfusion.metrics.alignment import GALLERY, Gallery, Judge, Subject, Verdict, fit_judge, half_of, judge_images
from snapfusion.metrics.features import (
    Backbone,
    Images,
    Vectors,
    VectorStore,
    image_vectors,
    sentence_vectors,
)
from snapfusion.progress import progress

BATCH = 16  # pictures that go through a backbone together


@dataclass(frozen=True)
class Bench:
    """Row i of `vectors` and `sentences` belongs to pair i."""

    half: int
    """The half of `train` that the judge learned from."""
    backbone: Backbone
    pairs: list[Pair]
    vectors: Vectors
    """Of the real pictures from the backbone, `[N, 2048]`."""
    sentences: Vectors
    """Of their prompts, `[N, 384]`."""
    judge: Judge
    gallery: Gallery

    def real(self, pairs: Sequence[Pair]) -> Vectors:
        """Vectors of the real pictures of some pairs, `[len(pairs), 2048]`."""
        return self.vectors[self._rows(pairs)]

    def unseen(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those of the pairs whose real pictures the judge was not trained on."""
        return [pair for pair in pairs if pair.split != "train" or half_of(pair.key) != self.half]

    def verdict(self, vectors: Vectors, pairs: Sequence[Pair]) -> Verdict:
        """What the judge says of pictures, as vectors `[N, 2048]`, that should show the N pairs."""
        return judge_images(self.judge, vectors, self.sentences[self._rows(pairs)], subjects_of(pairs), self.gallery)

    def _rows(self, pairs: Sequence[Pair]) -> list[int]:
        places = {pair.key: row for row, pair in enumerate(self.pairs)}
        return [places[pair.key] for pair in pairs]


def open_bench(
    module: ModuleType, data: Path, pairs: list[Pair], store: VectorStore, device: str, cache: Path | None
) -> Bench:
    """Embed the real pictures, or read their vectors from the store, and train the judge on its half of `train`.

    `module` is that of a judge, such as `metrics.judge_a`. The same set gives the same judge on every run.
    """
    backbone: Backbone = module.load_backbone(device, cache)

    def batches() -> Iterator[Images]:
        with progress(f"real pictures, {backbone.name}", 0, len(pairs)) as show:
            for start in range(0, len(pairs), 8 * BATCH):
                images = read_images(data, pairs[start : start + 8 * BATCH])
                yield from np.split(images, range(BATCH, len(images), BATCH))
                show(start + len(images))

    vectors = image_vectors(backbone, batches(), store)
    sentences = sentence_vectors([prompt_of(pair) for pair in pairs], store)
    rows = [row for row, pair in enumerate(pairs) if pair.split == "train" and half_of(pair.key) == module.HALF]
    subjects = subjects_of([pairs[row] for row in rows])
    judge = fit_judge(vectors[rows], sentences[rows], subjects, module.SEED)
    return Bench(module.HALF, backbone, pairs, vectors, sentences, judge, gallery_of(pairs, store))


def subjects_of(pairs: Sequence[Pair]) -> list[Subject]:
    """What the pictures of some pairs should show."""
    return [Subject(prompt_of(pair), pair.base, pair.style) for pair in pairs]


def gallery_of(pairs: Sequence[Pair], store: VectorStore) -> Gallery:
    """One prompt for each of `GALLERY` concepts, drawn once for all, in every style of the pairs."""
    by_concept = {pair.base: pair for pair in sorted(pairs, key=lambda pair: pair.key, reverse=True)}
    concepts = sorted(by_concept, key=lambda concept: number("gallery", concept))[:GALLERY]
    sentences = {
        style: sentence_vectors([prompt_of(replace(by_concept[concept], style=style)) for concept in concepts], store)
        for style in sorted({pair.style for pair in pairs})
    }
    return Gallery(tuple(concepts), sentences)
