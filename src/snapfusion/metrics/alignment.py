"""Does a picture show what its prompt says? A judge answers, and is itself judged on real pictures.

No CLIP can be had for our set, so a judge is trained on it: small heads that bring frozen image vectors and frozen
sentence vectors of the same concept together. What it finds is called alignment, never CLIP score, and is worth what
the judge's own retrieval of real pictures is worth. There are two, of different backbones, seeds and halves of the
training pictures: A (`judge_a`) may be searched and trained against, B (`judge_b`) only reports.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from snapfusion.metrics.estimate import Estimate, ratio_of_means, share

Vectors = NDArray[np.float32]  # [N, D]

WIDTH = 512  # of the space in which pictures and sentences meet
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 40, 256, 1e-3, 1.0, 0.5
LOG_SCALE = 2.5  # start of the learned factor on the cosines, e^2.5 = 12
GALLERY = 500  # prompts among which a picture looks for its own


def half_of(key: str) -> int:
    """The half of the training pictures, 0 or 1, to which a picture belongs for ever."""
    return hashlib.sha256(f"judge|{key}".encode()).digest()[0] % 2


@dataclass(frozen=True)
class Subject:
    """What a picture should show: its prompt, the concept that its variants share, and its style."""

    prompt: str
    concept: str
    style: str


# ---------------------------------------------------------------------------------------------------------------------
# The judge


@dataclass(frozen=True)
class Judge:
    """Trained heads. Vectors come from `snapfusion.metrics.features`: the judge's own backbone, and sentences."""

    image_head: nn.Module
    prompt_head: nn.Module
    style_head: nn.Module
    styles: tuple[str, ...]

    def images(self, vectors: Vectors) -> Vectors:
        """Image vectors `[N, D]` to unit vectors `[N, WIDTH]`."""
        return _apply(self.image_head, vectors, unit=True)

    def prompts(self, vectors: Vectors) -> Vectors:
        """Sentence vectors `[N, D]` to unit vectors `[N, WIDTH]`."""
        return _apply(self.prompt_head, vectors, unit=True)

    def style(self, vectors: Vectors) -> list[str]:
        """The style in which each picture seems to be drawn, from image vectors `[N, D]`."""
        return [self.styles[index] for index in _apply(self.style_head, vectors, unit=False).argmax(axis=1)]


@torch.inference_mode()
def _apply(head: nn.Module, vectors: Vectors, unit: bool) -> Vectors:
    result = head(torch.from_numpy(vectors))
    return (F.normalize(result, dim=1) if unit else result).numpy()


def fit_judge(images: Vectors, prompts: Vectors, subjects: Sequence[Subject], seed: int) -> Judge:
    """Train the heads on real pictures; the same inputs and seed give the same judge.

    Args:
        images: vectors of the pictures from the judge's backbone, `[N, D]`.
        prompts: sentence vectors of the subjects' prompts, `[N, D']`.
        subjects: what each picture shows.
        seed: of the initial weights and the order of the pictures.
    """
    assert len(images) == len(prompts) == len(subjects), (len(images), len(prompts), len(subjects))
    styles = tuple(sorted({subject.style for subject in subjects}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image_head, prompt_head = _head(images.shape[1], WIDTH), _head(prompts.shape[1], WIDTH)
        style_head = _head(images.shape[1], len(styles))
        image, prompt = torch.from_numpy(images), torch.from_numpy(prompts)
        concepts = _numbers([subject.concept for subject in subjects])
        style_numbers = torch.tensor([styles.index(subject.style) for subject in subjects])
        log_scale = nn.Parameter(torch.tensor(LOG_SCALE))

        def match(rows: Tensor) -> Tensor:
            a, b = F.normalize(image_head(image[rows]), dim=1), F.normalize(prompt_head(prompt[rows]), dim=1)
            return contrastive_loss(a @ b.T * log_scale.exp(), concepts[rows])

        def classify(rows: Tensor) -> Tensor:
            return F.cross_entropy(style_head(image[rows]), style_numbers[rows])

        _descend(match, [*image_head.parameters(), *prompt_head.parameters(), log_scale], len(images))
        _descend(classify, list(style_head.parameters()), len(images))
    return Judge(image_head.eval(), prompt_head.eval(), style_head.eval(), styles)


def contrastive_loss(similarity: Tensor, concepts: Tensor) -> Tensor:
    """InfoNCE in both directions (Radford et al. 2021, arXiv:2103.00020) of scaled similarities `[B, B]`.

    Row i is picture i, column i its own prompt. Others of the same concept are neither right nor wrong: left out.
    """
    same = (concepts[:, None] == concepts[None, :]) & ~torch.eye(len(concepts), dtype=torch.bool)
    similarity = similarity.masked_fill(same, -torch.inf)
    own = torch.arange(len(concepts))
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def _numbers(names: Sequence[str]) -> Tensor:
    """The same number for the same name, `[N]`."""
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names])


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(inputs, affine=False), nn.Dropout(DROPOUT), nn.Linear(inputs, outputs))


def _descend(loss: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], count: int) -> None:
    """Minimise `loss(rows)` over batches of the `count` rows."""
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(EPOCHS):
        for rows in torch.randperm(count).tensor_split(math.ceil(count / BATCH)):  # of equal size, give or take one
            optimiser.zero_grad()
            loss(rows).backward()
            optimiser.step()


# ---------------------------------------------------------------------------------------------------------------------
# The verdict


@dataclass(frozen=True)
class Gallery:
    """What pictures are compared with: for every style, a sentence vector of each concept's prompt in it, `[M, D]`."""

    concepts: tuple[str, ...]
    sentences: Mapping[str, Vectors]


@dataclass(frozen=True)
class Verdict:
    """What a judge finds in each of N pictures."""

    gap: NDArray[np.float32]
    """Cosine to the own prompt less the mean cosine to other concepts' prompts in its style, `[N]`."""
    rank: NDArray[np.int64]
    """Place of the own prompt among all of them, from 0, `[N]`."""
    styled: NDArray[np.bool_]
    """Whether the picture is in the style that its prompt names, `[N]`."""

    def recall(self, k: int = 10) -> Estimate:
        """R@K: the share of pictures whose own prompt is among the K nearest."""
        return share(self.rank < k)

    def style_accuracy(self) -> Estimate:
        """The share of pictures in the right style."""
        return share(self.styled)


def judge_images(
    judge: Judge, images: Vectors, prompts: Vectors, subjects: Sequence[Subject], gallery: Gallery
) -> Verdict:
    """Compare each picture with its own prompt and, in its style, with those of `GALLERY - 1` other concepts.

    Args:
        images: vectors of the pictures from the judge's backbone, `[N, D]`.
        prompts: sentence vectors of their own prompts, `[N, D']`.
        subjects: what each picture should show.
        gallery: prompts to compare with; a smaller one than `GALLERY` is used whole.
    """
    pictures, own = judge.images(images), judge.prompts(prompts)
    others = {style: judge.prompts(sentences) for style, sentences in gallery.sentences.items()}
    concepts = np.array(gallery.concepts)
    own_cosine = (pictures * own).sum(axis=1)
    gap, rank = np.empty(len(pictures), np.float32), np.empty(len(pictures), np.int64)
    for row, subject in enumerate(subjects):
        strangers = np.flatnonzero(concepts != subject.concept)[: GALLERY - 1]
        cosines = others[subject.style][strangers] @ pictures[row]
        gap[row] = own_cosine[row] - cosines.mean()
        rank[row] = np.count_nonzero(cosines >= own_cosine[row])
    seen = judge.style(images)
    styled = np.array([style == subject.style for style, subject in zip(seen, subjects, strict=True)])
    return Verdict(gap, rank, styled)


def alignment(generated: Verdict, real: Verdict) -> Estimate:
    """Mean gap of generated pictures over that of the real ones for the same prompts: 1 is real, 0 is unrelated."""
    return ratio_of_means(generated.gap, real.gap)
