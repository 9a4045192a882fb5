"""A checkpoint's networks in torch, a batch at a time: prompts and seeds -> latents -> images.

What `generate.py` is to a bundle, for whoever trains, searches or measures. Nothing here asks for gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snapfusion.autocast import autocast
from snapfusion.checkpoint import Checkpoint
from snapfusion.diffusion.guidance import guide, last_guided
from snapfusion.diffusion.noise import randn
from snapfusion.diffusion.sampler import Scheduler, path_of, sample
from snapfusion.diffusion.schedule import Schedule
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.tokens import tokenize


@dataclass(frozen=True)
class Sampling:
    """How a latent comes out of noise."""

    steps: int = 50
    guidance: float = 7.5
    """1 is none: the unconditional half of every batch is then left out."""
    scheduler: Scheduler = "ddim"
    guidance_stop: float = 1.0
    """Share of the steps that are guided, the first ones: see `guided_steps`."""
    bf16: bool = False
    """Whether the UNet computes in bfloat16, where its device has it; the sampler stays in float32."""


def draw_latents(checkpoint: Checkpoint, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling) -> Tensor:
    """The latents `[B, C, h, w]` (scaled) of B prompts and their seeds, on the UNet's device."""
    embedding = embed(checkpoint, ["", *prompts])
    noise = noise_of(latent_shape(checkpoint), seeds).to(embedding.device)
    return sample_latents(checkpoint.unet, checkpoint.schedule, embedding[1:], embedding[:1], noise, sampling)


@torch.no_grad()
def embed(checkpoint: Checkpoint, prompts: Sequence[str]) -> Tensor:
    """Embeddings `[B, L, D]` of prompts; of "" it is the unconditional one."""
    tokens, _ = tokenize(checkpoint.tokenizer, prompts, checkpoint.length)
    return checkpoint.text_encoder(torch.from_numpy(tokens).to(checkpoint.text_encoder.model.device))


def latent_shape(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """`(C, h, w)` of the latents that the UNet was trained on."""
    config = checkpoint.unet.config
    return config["in_channels"], config["sample_size"], config["sample_size"]


def noise_of(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """The noise that each seed stands for, on the CPU: `[B, *shape]` float32."""
    return torch.from_numpy(np.concatenate([randn((1, *shape), seed) for seed in seeds]))


@torch.no_grad()
def sample_latents(
    unet: nn.Module, schedule: Schedule, embedding: Tensor, empty: Tensor, noise: Tensor, sampling: Sampling
) -> Tensor:
    """Latents `[B, C, h, w]` (scaled, float32) from noise of that shape.

    Embeddings are `[B, L, D]`; `empty`, the unconditional one, is `[1, L, D]` or one a row. All on the UNet's device.
    """
    assert len(embedding) == len(noise), (embedding.shape, noise.shape)
    both = torch.cat([empty.expand_as(embedding), embedding])
    timesteps = [step.t for step in path_of(schedule, sampling.steps, sampling.scheduler)]
    last = last_guided(timesteps, sampling.guidance_stop, sampling.guidance)

    def predict(latent: Tensor, t: int) -> Tensor:
        guided = t >= last
        latents, rows = (torch.cat([latent, latent]), both) if guided else (latent, embedding)
        with autocast(latent.device, sampling.bf16):
            prediction = unet(latents, t, rows).sample.float()
        if not guided:
            return prediction
        uncond, cond = prediction.chunk(2)
        return guide(cond, uncond, sampling.guidance)

    *_, latent = sample(predict, schedule, noise, sampling.steps, sampling.scheduler)
    return latent


@torch.no_grad()
def decode(vae: PatchAutoencoderKL, latent: Tensor) -> Tensor:
    """Scaled latents `[B, C, h, w]` to images `[B, 3, H, W]`, clamped to 0..1."""
    image = vae.decode(latent / vae.config["scaling_factor"]).sample
    return (image / 2 + 0.5).clamp(0, 1)


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """Images `[B, 3, H, W]` in 0..1 as 8-bit pictures `[B, H, W, 3]`."""
    return (image * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
