"""What is evaluated: a bundle as a person runs it, or a checkpoint in torch, both as one function that draws."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from snapfusion.bundle import MANIFEST
from snapfusion.checkpoint import Checkpoint, hash_of, load_checkpoint
from snapfusion.diffusion.guidance import guide
from snapfusion.diffusion.noise import randn
from snapfusion.diffusion.sampler import sample
from snapfusion.generate import open_bundle
from snapfusion.tokens import tokenize

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

    @torch.inference_mode()
    def draw(prompts: Sequence[str], seeds: Sequence[int], guidance: float) -> Iterator[Image]:
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            yield from _draw_batch(checkpoint, prompts[part], seeds[part], guidance, steps)

    return draw


def _draw_batch(
    checkpoint: Checkpoint, prompts: Sequence[str], seeds: Sequence[int], guidance: float, steps: int
) -> Image:
    """One picture for each prompt, `[B, H, W, 3]`, by DDIM."""
    unet, vae = checkpoint.unet, checkpoint.vae
    tokens, _ = tokenize(checkpoint.tokenizer, ["", *prompts], checkpoint.length)
    embedding = checkpoint.text_encoder(torch.from_numpy(tokens).to(unet.device))
    embedding = torch.cat([embedding[:1].expand(len(prompts), -1, -1), embedding[1:]])
    side = unet.config["sample_size"]
    shape = (1, unet.config["in_channels"], side, side)
    noise = torch.from_numpy(np.concatenate([randn(shape, seed) for seed in seeds])).to(unet.device)

    def predict(latent: torch.Tensor, t: int) -> torch.Tensor:
        uncond, cond = unet(torch.cat([latent, latent]), t, embedding).sample.chunk(2)
        return guide(cond, uncond, guidance)

    *_, latent = sample(predict, checkpoint.schedule, noise, steps)
    image = vae.decode(latent / vae.config["scaling_factor"]).sample
    return ((image / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
