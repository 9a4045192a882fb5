"""CLIP score against transformers' own logits of pictures that were brought to size by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from snapfusion.metrics.clip_score import BATCH, NAMED, Clip, load_clip
from snapfusion.tokens import read_tokenizer, tokenize
from tiny_clip import LENGTH, SIDE, tiny_clip

PROMPTS = ["a red fox", "a cat", "the blue whale of the sea"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(str(folder))


def pictures(height: int, width: int, count: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        for _ in range(count)
    ]


def by_hand(image: np.ndarray) -> np.ndarray:
    """CLIP's rules: bicubic until the shorter edge fits, the middle, 0..1, less OpenAI's mean, over its deviation."""
    height, width = image.shape[:2]
    scale = SIDE / min(height, width)
    small = Image.fromarray(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (small.width - SIDE) // 2, (small.height - SIDE) // 2
    cut = np.asarray(small.crop((left, top, left + SIDE, top + SIDE)), np.float64) / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return ((cut - mean) / deviation).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (80, 40)])
def test_cosines_are_transformers_logits_without_their_scale(clip: Clip, folder: Path, size: tuple[int, int]) -> None:
    images = pictures(*size)
    model: Any = CLIPModel.from_pretrained(folder).eval()
    tokens, _ = tokenize(read_tokenizer(folder)[0], PROMPTS, LENGTH)
    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(tokens),
            pixel_values=torch.from_numpy(np.stack([by_hand(image) for image in images])).float(),
        )
    expected = (output.logits_per_image.diag() / model.logit_scale.detach().exp()).numpy()
    assert np.ptp(expected) > 0.01  # they differ, so a mix-up would show
    np.testing.assert_allclose(clip.cosines(images, PROMPTS), expected, atol=1e-5)


def test_a_picture_has_the_same_score_in_any_batch(clip: Clip) -> None:
    images, prompts = pictures(32, 32, BATCH + 2), [f"a cat {place}" for place in range(BATCH + 2)]
    alone = [clip.cosines([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    np.testing.assert_allclose(clip.cosines(images, prompts), alone, atol=1e-6)
    assert clip.cosines([], []).shape == (0,)


def test_a_prompt_that_is_too_long_loses_its_end(clip: Clip) -> None:
    images = pictures(32, 32, 1)
    long = clip.cosines(images, ["a red fox " * 20])
    np.testing.assert_allclose(long, clip.cosines(images, ["a red fox " * 30]), atol=1e-6)
    assert abs(long - clip.cosines(images, ["a red fox"])) > 1e-4


def test_the_name_says_which_weights(clip: Clip, folder: Path, tmp_path: Path) -> None:
    name, _, version = clip.name.partition("@")
    assert name == folder.name
    assert len(version) == 12
    other = load_clip(str(tiny_clip(tmp_path / folder.name, seed=1)))
    assert other.name.startswith(f"{name}@")
    assert other.name != clip.name


def test_the_papers_clip_has_a_short_name() -> None:
    assert NAMED["vit-g-14"] == "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
    assert NAMED["vit-l-14"] == "openai/clip-vit-large-patch14"


def test_a_clip_that_is_not_there_or_is_pickled_is_one_line(tmp_path: Path) -> None:
    pickled = tiny_clip(tmp_path / "pickled")
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (pickled, empty):
        with pytest.raises(ValueError, match=r"got CLIP .*expected a folder with config.json, model.safetensors"):
            load_clip(str(folder))
