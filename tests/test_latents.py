"""The cache that UNets train from: built once, read by whoever has the same encoders, and what a step draws of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from snapfusion import latents
from snapfusion.data.pairs import load_index
from snapfusion.data.stickers import build
from snapfusion.latents import Cache, Encoders, Shares, draw_examples, load_caches, train_and_cells
from snapfusion.tokens import tokenize
from tiny_stickers import tiny_packages


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 32 px pictures."""
    folder = tmp_path_factory.mktemp("stickers")
    with pytest.MonkeyPatch.context() as patch:
        return build(folder / "set", size=32, cache=tiny_packages(folder / "packages", patch), workers=1)


def encoders() -> Encoders:
    torch.manual_seed(0)
    checkpoint = tiny_models.sticker_checkpoint()
    return Encoders(checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer, checkpoint.length)


def small_cache() -> Cache:
    """Latents that say their row, sentences that say their number; rows 6 to 8 are recoloured."""
    rows = torch.arange(9.0)[:, None, None, None].expand(9, 1, 2, 2)
    return Cache(
        latents=rows.half(),
        mirrored=(rows + 100).half(),
        captions=torch.arange(1, 19).reshape(9, 2),
        embeddings=torch.arange(19.0)[:, None, None].expand(19, 4, 3).half(),
        recoloured=torch.arange(9) >= 6,
    )


def test_a_cache_holds_the_pictures_latents_and_the_captions_embeddings(data: Path, tmp_path: Path) -> None:
    own = encoders()
    train, cells = load_caches(tmp_path, data, True, own, variants=2, seed=0)
    pairs, held_out = train_and_cells(data, core=True)
    assert len(pairs) == int((~train.recoloured).sum())
    assert len(held_out) == len(cells.latents)
    assert not cells.recoloured.any()
    (image,) = latents.read_images(data, pairs[:1])
    for picture, cached in ((image, train.latents[0]), (image[:, ::-1].copy(), train.mirrored[0])):
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            expected = own.vae.encode(pixels).latent_dist.mean[0] * own.vae.config["scaling_factor"]
        torch.testing.assert_close(cached.float(), expected, rtol=0.05, atol=0.01)  # bfloat16
    tokens, _ = tokenize(own.tokenizer, [""], own.length)
    with torch.no_grad():
        empty = own.text_encoder(torch.from_numpy(tokens))[0]
    torch.testing.assert_close(train.embeddings[0].float(), empty, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "built"),
    [
        (lambda own: own, False),
        (lambda own: replace(own, vae=tiny_models.tiny_vae(levels=2, patch_size=2)), True),
        (lambda own: replace(own, text_encoder=tiny_models.sticker_checkpoint().text_encoder), True),
        (lambda own: replace(own, length=8), True),
    ],
    ids=["same", "other latents", "other text encoder", "shorter prompts"],
)
def test_a_cache_is_built_again_for_other_encoders(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Encoders], Encoders], built: bool
) -> None:
    own = encoders()
    load_caches(tmp_path, data, True, own, variants=2, seed=0)
    reads, read = [], latents.read_images
    monkeypatch.setattr(latents, "read_images", lambda *given: (reads.append(given), read(*given))[1])
    load_caches(tmp_path, data, True, change(own), variants=2, seed=0)
    assert bool(reads) is built


def test_a_set_without_held_out_pictures_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = [pair for pair in load_index(data) if pair.split == "train"]
    monkeypatch.setattr(latents, "load_index", lambda folder, core: train)
    with pytest.raises(ValueError, match=rf"with {len(train)} pictures to train on and 0 held out"):
        train_and_cells(data, core=False)


def test_examples_depend_on_seed_and_step_alone() -> None:
    cache = small_cache()
    first, again, other = (draw_examples(cache, 64, 3, step) for step in (7, 7, 8))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    assert not torch.equal(first.noise, other.noise)


def test_examples_belong_together_and_come_in_their_shares() -> None:
    count = 4000
    drawn = draw_examples(
        small_cache(), count, seed=1, step=0, shares=Shares(dropout=0.1, recoloured=0.25, mirrored=0.3)
    )
    rows = drawn.x[:, 0, 0, 0].numpy() % 100
    sentences = drawn.embedding[:, 0, 0].numpy()
    np.testing.assert_array_equal((sentences - 1) // 2, rows)  # sentences 2n + 1 and 2n + 2 are row n's
    shares = {
        "mirrored": (drawn.x[:, 0, 0, 0] >= 100, 0.3),
        "recoloured": (torch.from_numpy(rows) >= 6, 0.25),
        "second caption": (torch.from_numpy(sentences) % 2 == 0, 0.5),
        "dropped": (drawn.dropped, 0.1),
    }
    for name, (hits, share) in shares.items():
        assert hits.float().mean().item() == pytest.approx(share, abs=0.03), name
    assert (drawn.dropped_embedding()[drawn.dropped] == 0).all()  # the empty prompt's embedding here
    assert torch.equal(drawn.dropped_embedding()[~drawn.dropped], drawn.embedding[~drawn.dropped])
    assert drawn.noise.std().item() == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal((drawn.place * count).astype(int), np.arange(count))
