"""What UNets train from: latents of pictures and embeddings of captions, cached, and what a step draws of them."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from snapfusion.autocast import autocast
from snapfusion.data.colours import HUES, colour_of, recolour
from snapfusion.data.pairs import Pair, hash_of_set, load_index, read_images
from snapfusion.data.prompts import caption, prompt_of
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.text import TextEncoder
from snapfusion.progress import progress
from snapfusion.tokens import tokenize
from snapfusion.weights import load_whole, save_whole

BATCH = 32
READ_TOGETHER = 1024  # pictures that are in memory at a time: those of a large set would not fit


@dataclass(frozen=True)
class Cache:
    """Pictures as latents, sentences as embeddings, and which sentences belong to which picture."""

    latents: Tensor  # [N, C, h, w] float16, scaled; the mirrored ones are `mirrored`, in the same order
    mirrored: Tensor  # [N, C, h, w] float16
    captions: Tensor  # [N, K] int64, rows of `embeddings`
    embeddings: Tensor  # [M, L, D] float16; row 0 is the empty prompt's
    recoloured: Tensor  # [N] bool, copies with a turned hue

    def to(self, device: torch.device) -> "Cache":
        """The same with its latents on another device, where batches are then drawn.

        Sentences stay: those of a large set take more than its latents do.
        """
        return replace(self, latents=self.latents.to(device), mirrored=self.mirrored.to(device))


@dataclass(frozen=True)
class Encoders:
    """What turns pictures and captions into what a UNet reads; on one device, in evaluation mode."""

    vae: PatchAutoencoderKL
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    length: int  # tokens of a prompt


@dataclass(frozen=True)
class Examples:
    """What one step trains on, before a noise level is chosen."""

    x: Tensor  # [B, C, h, w] float32, clean latents, scaled
    noise: Tensor  # [B, C, h, w] float32
    embedding: Tensor  # [B, L, D] float32, of a caption of each
    empty: Tensor  # [1, L, D] float32, of the empty prompt
    dropped: Tensor  # [B] bool, the share that is trained without its caption
    place: NDArray[np.float64]  # [B], one in each of B equal parts of 0..1: stratified, for a less noisy loss

    def dropped_embedding(self) -> Tensor:
        """`[B, L, D]`: the captions' embeddings, or the empty prompt's where they are dropped."""
        return torch.where(self.dropped[:, None, None], self.empty, self.embedding)


@dataclass(frozen=True)
class Shares:
    """How many of the examples are not just a picture with its caption, each from 0 to 1."""

    dropout: float = 0.0
    """Lose their caption."""
    recoloured: float = 0.0
    """Are copies with a turned hue."""
    mirrored: float = 0.5
    """Are mirrored, which no caption says: the more of them, the less a caption says of what is where."""

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"got {name} {share}, expected a share from 0 to 1")


HALF_MIRRORED = Shares()


def draw_examples(cache: Cache, batch: int, seed: int, step: int, shares: Shares = HALF_MIRRORED) -> Examples:
    """The examples of one step, chosen by (seed, step) alone."""
    draw = np.random.default_rng((seed, step))
    originals = int((~cache.recoloured).sum())
    copies = len(cache.recoloured) - originals
    rows = draw.integers(originals, size=batch)
    if copies:
        rows = np.where(draw.random(batch) < shares.recoloured, originals + draw.integers(copies, size=batch), rows)
    variants = draw.integers(cache.captions.shape[1], size=batch)
    mirror, dropped = draw.random(batch) < shares.mirrored, draw.random(batch) < shares.dropout
    place = (np.arange(batch) + draw.random(batch)) / batch
    noise_seed = int(draw.integers(2**62))

    device = cache.latents.device
    places, flips = torch.from_numpy(rows).to(device), torch.from_numpy(mirror).to(device)
    sentences = cache.captions[torch.from_numpy(rows), torch.from_numpy(variants)]
    x = torch.where(flips[:, None, None, None], cache.mirrored[places], cache.latents[places]).float()
    return Examples(
        x=x,
        noise=torch.randn(x.shape, generator=torch.Generator(device).manual_seed(noise_seed), device=device),
        embedding=cache.embeddings[sentences].to(device).float(),
        empty=cache.embeddings[:1].to(device).float(),
        dropped=torch.from_numpy(dropped).to(device),
        place=place,
    )


def train_rows(
    pairs: list[Pair], images: NDArray[np.uint8], seed: int, first: int = 0
) -> tuple[list[Pair], list[str | None], NDArray[np.uint8]]:
    """The pictures to train on: every one as it is, then one copy of each one-coloured one in another colour.

    `first` is how many pictures of the set come before these; a copy's colour depends on (seed, place in the set).
    Returns the rows, the colour word of each copy (None for originals), and the pictures `[N, H, W, 3]`.
    """
    rows, words, copies = list(pairs), originals(pairs), []
    for index, (pair, image) in enumerate(zip(pairs, images, strict=True), first):
        colour = colour_of(image) if pair.style not in ("silhouette", "") else None
        if colour is not None:
            others = [word for word in HUES if word != colour.word]
            word = others[int(np.random.default_rng((seed, index)).integers(len(others)))]
            rows.append(pair)
            words.append(word)
            copies.append(recolour(image, colour, word))
    return rows, words, np.concatenate([images, np.stack(copies)]) if copies else images


def originals(pairs: list[Pair]) -> list[str | None]:
    """The colour words of pictures that are as they were drawn: none."""
    return [None for _ in pairs]


def captions_of(
    rows: list[Pair], words: list[str | None], variants: int, seed: int
) -> tuple[NDArray[np.int64], list[str]]:
    """`variants` sentences for each row, chosen by (seed, row, variant).

    Returns their places `[N, K]` in the list of distinct sentences, and that list.

    The first sentence of all is the empty prompt; an original's first variant is the prompt it is tested with.
    """
    sentences: dict[str, int] = {"": 0}
    places = np.zeros((len(rows), variants), np.int64)
    for row, (pair, word) in enumerate(zip(rows, words, strict=True)):
        for variant in range(variants):
            draw = np.random.default_rng((seed, row, variant))
            sentence = prompt_of(pair) if variant == 0 and word is None else caption(pair, draw, word)
            places[row, variant] = sentences.setdefault(sentence, len(sentences))
    return places, list(sentences)


@torch.inference_mode()
def encode_images(images: NDArray[np.uint8], vae: PatchAutoencoderKL) -> Tensor:
    """Means of the latents of pictures `[N, H, W, 3]`: `[N, C, h, w]` float32, unscaled."""
    latents = []
    for start in range(0, len(images), BATCH):
        image = torch.from_numpy(images[start : start + BATCH].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        with autocast(vae.device):
            latents.append(vae.encode(image.to(vae.device)).latent_dist.mean.float().cpu())
    return torch.cat(latents).contiguous()


@torch.inference_mode()
def encode_prompts(prompts: list[str], encoders: Encoders) -> Tensor:
    """Embeddings of prompts: `[M, L, D]` float16."""
    text_encoder = encoders.text_encoder
    embeddings = torch.empty(len(prompts), encoders.length, text_encoder.width, dtype=torch.half)
    with progress("captions", 0, len(prompts)) as show:
        for start in range(0, len(prompts), 4 * BATCH):
            tokens, _ = tokenize(encoders.tokenizer, part := prompts[start : start + 4 * BATCH], encoders.length)
            with autocast(text_encoder.model.device):
                embedding = text_encoder(torch.from_numpy(tokens).to(text_encoder.model.device))
            embeddings[start : start + len(part)] = embedding
            show(start + len(part))
    return embeddings


def fingerprint(pairs: list[Pair], vae: PatchAutoencoderKL, variants: int, seed: int) -> str:
    """What a cache depends on, as one hash: rows, autoencoder, captions."""
    digest = hashlib.sha256(json.dumps([asdict(pair) for pair in pairs] + [variants, seed]).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def train_and_cells(data: Path, core: bool) -> tuple[list[Pair], list[Pair]]:
    """The rows of a built set to train on, and those held out. Raises `ValueError` where there are none of either."""
    pairs = load_index(data, core)
    train, cells = ([pair for pair in pairs if pair.split == split] for split in ("train", "cells"))
    if not train or not cells:
        raise ValueError(
            f"got {data} with {len(train)} pictures to train on and {len(cells)} held out, expected some of each"
        )
    return train, cells


def load_caches(
    folder: Path, data: Path, core: bool, encoders: Encoders, variants: int, seed: int
) -> tuple[Cache, Cache]:
    """The caches of `train_and_cells` in `folder`, built if they are not there; held-out rows as they are tested."""
    train, cells = train_and_cells(data, core)
    return (
        load_or_build(folder / "train.safetensors", data, train, encoders, variants, seed),
        load_or_build(folder / "cells.safetensors", data, cells, encoders, 1, seed, augment=False),
    )


def load_or_build(
    path: Path, data: Path, pairs: list[Pair], encoders: Encoders, variants: int, seed: int, augment: bool = True
) -> Cache:
    """The cache in `path`, built if it is absent or of something else.

    Without `augment` there are no recoloured copies: so for held-out pictures.
    """
    wanted = f"{fingerprint(pairs, encoders.vae, variants, seed)}-{hash_of_set(data)}-{augment}"
    if (cache := _load(path, wanted, encoders)) is not None:
        return cache
    rows, words, both = _encoded(data, pairs, encoders.vae, seed if augment else None)
    places, sentences = captions_of(rows, words, variants, seed)
    cache = {
        "latents": both[0].contiguous(),
        "mirrored": both[1].contiguous(),
        "captions": torch.from_numpy(places),
        "embeddings": encode_prompts(sentences, encoders),
        "recoloured": torch.tensor([word is not None for word in words]),
    }
    save_whole(cache, path, {"fingerprint": wanted})
    return Cache(**cache)


def _encoded(
    data: Path, pairs: list[Pair], vae: PatchAutoencoderKL, seed: int | None
) -> tuple[list[Pair], list[str | None], Tensor]:
    """Rows and colour words as `train_rows` has them, or with no seed no copies, and `[2, N, C, h, w]` float16: the
    latents, scaled, of all pictures as they are and mirrored."""
    copies, words, plain, turned = list[Pair](), list[str | None](), list[Tensor](), list[Tensor]()
    with progress("pictures to latents", 0, len(pairs)) as show:
        for first in range(0, len(pairs), READ_TOGETHER):
            part = pairs[first : first + READ_TOGETHER]
            rows, said, images = part, originals(part), read_images(data, part)
            if seed is not None:
                rows, said, images = train_rows(part, images, seed, first)
            sides = [encode_images(side, vae) * vae.config["scaling_factor"] for side in (images, images[:, :, ::-1])]
            both = torch.stack(sides).half()
            copies += rows[len(part) :]
            words += said[len(part) :]
            plain.append(both[:, : len(part)])
            turned.append(both[:, len(part) :])
            show(first + len(part))
    return [*pairs, *copies], [*originals(pairs), *words], torch.cat([*plain, *turned], dim=1)


def _load(path: Path, wanted: str, encoders: Encoders) -> Cache | None:
    """What is in `path`, if it is what is wanted. The fingerprint says nothing of the text encoder: it is tried."""
    if not path.exists():
        return None
    metadata, tensors = load_whole(path)
    if metadata.get("fingerprint") != wanted:
        return None
    there, here = tensors["embeddings"][:1].float(), encode_prompts([""], encoders).float()
    same = there.shape == here.shape and torch.allclose(there, here, rtol=0.05, atol=0.05)  # bf16 on any machine
    return Cache(**tensors) if same else None
