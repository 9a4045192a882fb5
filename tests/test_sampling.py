"""Prompts and seeds to latents and pictures in torch, held against diffusers' scheduler and torch's own noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from snapfusion.autocast import has_bf16
from snapfusion.checkpoint import Checkpoint, load_checkpoint
from snapfusion.diffusion.sampler import ddim_step, path_of
from snapfusion.sampling import Sampling, decode, draw_latents, embed, latent_shape, noise_of, pixels, sample_latents

PROMPTS, SEEDS = ["a red fox", "a blue whale, flat"], [3, 4]


@pytest.fixture(scope="module", params=["tiny_checkpoint", "tiny_sd_checkpoint"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    folder: Path = request.getfixturevalue(request.param)
    return load_checkpoint(folder)


@torch.no_grad()
def by_diffusers(checkpoint: Checkpoint, guidance: float, steps: int) -> torch.Tensor:
    """One picture after the other, with diffusers' scheduler and torch's generator."""
    scheduler = DDIMScheduler.from_config(checkpoint.schedule.to_config())
    latents = []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        uncond, cond = (embed(checkpoint, [text]) for text in ("", prompt))
        latent = torch.randn((1, *latent_shape(checkpoint)), generator=torch.Generator().manual_seed(seed))
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            low, high = (checkpoint.unet(latent, t, embedding).sample for embedding in (uncond, cond))
            latent = scheduler.step(low + guidance * (high - low), int(t), latent).prev_sample
        latents.append(latent)
    return torch.cat(latents)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_batch_is_what_diffusers_draws_one_by_one(checkpoint: Checkpoint, guidance: float) -> None:
    latent = draw_latents(checkpoint, PROMPTS, SEEDS, Sampling(steps=5, guidance=guidance))
    expected = by_diffusers(checkpoint, guidance, steps=5)
    assert ((latent - expected).norm() / expected.norm()).item() < 1e-4
    assert not latent.requires_grad


def test_without_guidance_the_unconditional_half_is_not_computed(checkpoint: Checkpoint) -> None:
    embedding, noise = embed(checkpoint, PROMPTS), noise_of(latent_shape(checkpoint), SEEDS)
    unknown = torch.full_like(embedding[:1], torch.nan)
    sampling = Sampling(steps=2, guidance=1.0)
    latent = sample_latents(checkpoint.unet, checkpoint.schedule, embedding, unknown, noise, sampling)
    assert latent.isfinite().all()
    guided = sample_latents(
        checkpoint.unet, checkpoint.schedule, embedding, unknown, noise, replace(sampling, guidance=2.0)
    )
    assert guided.isnan().all()


def test_where_guidance_stops_the_rest_is_the_prompts_own_prediction(checkpoint: Checkpoint) -> None:
    embedding, noise = embed(checkpoint, ["", *PROMPTS]), noise_of(latent_shape(checkpoint), SEEDS)
    unet, schedule, rows = checkpoint.unet, checkpoint.schedule, embedding[1:]
    half = sample_latents(unet, schedule, rows, embedding[:1], noise, Sampling(4, 3.0, guidance_stop=0.5))

    expected = noise
    for k, (t, now, then) in enumerate(path_of(schedule, 4, "ddim")):  # by hand, a step at a time
        with torch.no_grad():
            cond = unet(expected, t, rows).sample
            uncond = unet(expected, t, embedding[:1].expand_as(rows)).sample
        guided = uncond + 3.0 * (cond - uncond) if k < 2 else cond
        expected = ddim_step(expected, guided, now, then, schedule.prediction_type)
    torch.testing.assert_close(half, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this CPU computes in float32 for bfloat16")
def test_bf16_is_close_and_stays_float32_outside_the_unet(checkpoint: Checkpoint) -> None:
    exact, rounded = (draw_latents(checkpoint, PROMPTS, SEEDS, Sampling(4, 2.0, bf16=bf16)) for bf16 in (False, True))
    assert rounded.dtype == torch.float32
    error = ((rounded - exact).norm() / exact.norm()).item()
    assert 0 < error < 0.05


def test_noise_is_torchs_own() -> None:
    expected = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 2**31)]
    torch.testing.assert_close(noise_of((4, 8, 8), [0, 2**31]), torch.stack(expected), atol=1e-6, rtol=0)


def test_pictures_are_the_rounded_images(checkpoint: Checkpoint) -> None:
    latent = noise_of(latent_shape(checkpoint), SEEDS)
    image = decode(checkpoint.vae, latent)
    with torch.no_grad():
        raw = checkpoint.vae.decode(latent / checkpoint.vae.config["scaling_factor"]).sample
    assert image.amin() >= 0
    assert image.amax() <= 1
    expected = np.clip(np.rint((raw.double().numpy() + 1) * 127.5), 0, 255).transpose(0, 2, 3, 1)
    drawn = pixels(image)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn - expected).max() <= 1  # float32 may round a tie the other way
    assert (drawn == expected).mean() > 0.999
