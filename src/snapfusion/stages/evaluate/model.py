"""What is evaluated: a bundle as a person runs it, or a checkpoint in torch, both as one function that draws."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from snapfusion.bundle import MANIFEST
from snapfusion.checkpoint import Checkpoint, hash_of, load_checkpoint
from snapfusion.generate import open_bundle
from snapfusion.sampling import Sampling, decode, draw_latents, pixels

Image = NDArray[np.uint8]  # [H, W, 3]
Draw = Callable[[Sequence[str], Sequence[int], float], Iterator[Image]]


@dataclass(frozen=True)
class Model:
    """A text-to-image model under its name. `draw(prompts, seeds, guidance)` gives the pictures in order."""

    name: str
    sha256: str
    """What the figures belong to: of the bundle's manifest, or of all files of the checkpoint."""
    engine: str
    steps: int
    """Steps of DDIM, or of the bundle's own scheduler."""
    draw: Draw


def open_model(folder: Path, steps: int, batch: int = 8, device: str = "cpu") -> Model:
    """The bundle or the checkpoint in a folder; `batch` and `device` concern the checkpoint alone.

    Raises:
        ValueError: the folder holds neither.
    """
    if (folder / MANIFEST).is_file():
        drawing = open_bundle(folder)
        bundle = drawing.bundle

        def draw(prompts: Sequence[str], seeds: Sequence[int], guidance: float) -> Iterator[Image]:
            for prompt, seed in zip(prompts, seeds, strict=True):
                (image,) = drawing(prompt, seed=seed, steps=steps, guidance=guidance)
                yield np.asarray(image)

        return Model(bundle.manifest.name, bundle.hash, bundle.manifest.runtime, steps, draw)
    draw_batches = _draw_batches(load_checkpoint(folder), steps, batch, device)
    return Model(folder.resolve().name, hash_of(folder), f"torch on {device}", steps, draw_batches)


def _draw_batches(checkpoint: Checkpoint, steps: int, batch: int, device: str) -> Draw:
    networks: list[nn.Module] = [checkpoint.text_encoder, checkpoint.unet, checkpoint.vae]
    for network in networks:
        network.to(device).eval()

    def draw(prompts: Sequence[str], seeds: Sequence[int], guidance: float) -> Iterator[Image]:
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            latent = draw_latents(checkpoint, prompts[part], seeds[part], Sampling(steps, guidance))
            yield from pixels(decode(checkpoint.vae, latent))

    return draw
