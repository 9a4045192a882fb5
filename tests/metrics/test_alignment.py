import math

import numpy as np
import pytest
import torch
from torch import nn

from snapfusion.metrics.alignment import (
    GALLERY,
    Gallery,
    Judge,
    Subject,
    alignment,
    contrastive_loss,
    fit_judge,
    half_of,
    judge_images,
)

CONCEPTS = [f"thing {number}" for number in range(12)]
STYLES = ("flat", "round")


def test_contrastive_loss_leaves_out_others_of_the_same_concept() -> None:
    """By hand: pictures 0 and 1 show one concept, so each has only column 2 against it."""
    similarity = torch.tensor([[2.0, 9.0, 0.5], [9.0, 1.0, 0.0], [0.3, 0.2, 1.5]])
    rows = [
        math.log(1 + math.exp(0.5 - 2)),
        math.log(1 + math.exp(0 - 1)),
        math.log(1 + math.exp(-1.2) + math.exp(-1.3)),
    ]
    columns = [
        math.log(1 + math.exp(0.3 - 2)),
        math.log(1 + math.exp(0.2 - 1)),
        math.log(1 + math.exp(-1) + math.exp(-1.5)),
    ]
    expected = (sum(rows) / 3 + sum(columns) / 3) / 2
    assert contrastive_loss(similarity, torch.tensor([4, 4, 7])).item() == pytest.approx(expected, abs=1e-6)


def judge_that_only_compares() -> Judge:
    """Vectors pass as they are; the style is the larger of the first two numbers."""
    return Judge(nn.Identity(), nn.Identity(), nn.Linear(3, 2), STYLES)


def test_verdict_by_hand() -> None:
    judge = judge_that_only_compares()
    assert isinstance(judge.style_head, nn.Linear)
    judge.style_head.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    judge.style_head.bias.data.zero_()
    axes = np.eye(3, dtype=np.float32)
    gallery = Gallery(("a", "b", "c"), {"flat": axes, "round": -axes})
    images = np.array([[3, 0, 0], [0.6, 0.8, 0]], dtype=np.float32)
    subjects = [Subject("an a", "a", "flat"), Subject("a c", "c", "flat")]
    verdict = judge_images(judge, images, axes[[0, 2]], subjects, gallery)
    # Picture 0: 1 to its own, 0 and 0 to b and c. Picture 1: 0 to c, 0.6 and 0.8 to a and b, so it comes third.
    np.testing.assert_allclose(verdict.gap, [1, -0.7], atol=1e-6)
    assert verdict.rank.tolist() == [0, 2]
    assert verdict.styled.tolist() == [True, False]
    assert verdict.recall(1).value == verdict.style_accuracy().value == 0.5
    assert verdict.recall(3).value == 1


def test_a_picture_is_compared_in_its_own_style() -> None:
    axes = np.eye(3, dtype=np.float32)
    gallery = Gallery(("a", "b", "c"), {"flat": axes, "round": -axes})
    verdict = judge_images(judge_that_only_compares(), axes[:1], axes[:1], [Subject("an a", "a", "round")], gallery)
    np.testing.assert_allclose(verdict.gap, [1], atol=1e-6)
    everything = judge_images(judge_that_only_compares(), axes[:1], axes[:1], [Subject("a d", "d", "round")], gallery)
    np.testing.assert_allclose(everything.gap, [1 + 1 / 3], atol=1e-6)


def test_gallery_holds_the_own_prompt_and_499_others() -> None:
    """With 600 concepts on the gallery's list, those past the 499th stranger never count."""
    sentences = np.tile(np.array([[0, 1, 0]], dtype=np.float32), (600, 1))
    sentences[GALLERY - 1 :] = [1, 0, 0]  # would beat the own prompt
    gallery = Gallery(tuple(f"c{row}" for row in range(600)), {"flat": sentences})
    image = np.array([[1, 0.5, 0]], dtype=np.float32)
    own = np.array([[1, 0, 1]], dtype=np.float32)
    verdict = judge_images(judge_that_only_compares(), image, own, [Subject("", "elsewhere", "flat")], gallery)
    assert verdict.rank.tolist() == [0]
    # Where the own concept is among the first, one more stranger takes its place.
    verdict = judge_images(judge_that_only_compares(), image, own, [Subject("", "c3", "flat")], gallery)
    assert verdict.rank.tolist() == [1]


def test_alignment_of_the_real_pictures_is_1_and_of_unrelated_ones_0() -> None:
    random = np.random.default_rng(0)
    prompts = random.normal(size=(60, 32)).astype(np.float32)
    gallery = Gallery(tuple(map(str, range(60))), {"flat": prompts})
    subjects = [Subject("", str(row), "flat") for row in range(60)]
    judge = Judge(nn.Identity(), nn.Identity(), nn.Linear(32, 1), ("flat",))
    real = judge_images(judge, prompts, prompts, subjects, gallery)
    unrelated = judge_images(judge, np.roll(prompts, 1, axis=0), prompts, subjects, gallery)
    assert alignment(real, real).value == 1
    estimate = alignment(unrelated, real)
    assert estimate.low < 0 < estimate.high
    assert abs(estimate.value) < 0.1


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray, list[Subject]]:
    """Vectors in which concept and style are to be found, mixed and noisy, for training and for testing alike."""
    random = np.random.default_rng(0)
    subjects = [Subject(f"{c}, {s}", c, s) for c in CONCEPTS for s in STYLES for _ in range(20)]
    code = {word: random.normal(size=64) for word in (*CONCEPTS, *STYLES)}
    images = np.array([code[s.concept] + code[s.style] + random.normal(size=64) for s in subjects], dtype=np.float32)
    words = {word: random.normal(size=48) for word in (*CONCEPTS, *STYLES)}
    prompts = np.array([words[s.concept] + words[s.style] for s in subjects], dtype=np.float32)
    return images, prompts, subjects


def test_a_trained_judge_knows_pictures_that_it_has_not_seen(pictures: tuple) -> None:
    images, prompts, subjects = pictures
    judge = fit_judge(images[::2], prompts[::2], subjects[::2], seed=0)
    by_style = {style: [row for row, s in enumerate(subjects) if s.style == style][::20] for style in STYLES}
    gallery = Gallery(tuple(CONCEPTS), {style: prompts[rows] for style, rows in by_style.items()})
    verdict = judge_images(judge, images[1::2], prompts[1::2], subjects[1::2], gallery)
    assert verdict.recall(1).value > 0.9  # by chance 1/12
    assert verdict.style_accuracy().value > 0.9  # by chance 1/2
    assert verdict.gap.mean() > 0.3


def test_training_depends_on_the_seed_alone(pictures: tuple) -> None:
    images, prompts, subjects = (part[:100] for part in pictures)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit_judge(images, prompts, subjects, seed=3).images(images)
    torch.testing.assert_close(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.testing.assert_array_equal(fit_judge(images, prompts, subjects, seed=3).images(images), first)
    assert not np.array_equal(fit_judge(images, prompts, subjects, seed=4).images(images), first)


def test_halves_are_fixed_and_about_equal() -> None:
    halves = [half_of(f"1f{number:x}_flat") for number in range(1000)]
    assert 440 < sum(halves) < 560
    assert [half_of("1f98a_3d"), half_of("1f98a_flat")] == [half_of("1f98a_3d"), half_of("1f98a_flat")]
