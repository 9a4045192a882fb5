"""Prompt to pixels: diffusers' own pipeline, our story on torch, and the bundle draw the same picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from snapfusion.bundle import Networks, read_bundle
from snapfusion.checkpoint import load_checkpoint
from snapfusion.generate import generate, open_networks
from snapfusion.runtimes.torch import Network
from snapfusion.settings import settings_for
from snapfusion.stages.export import stage
from snapfusion.stages.export.modules import modules

PROMPT, NEGATIVE = "a red fox in the snow", "cat"


@pytest.mark.slow
def test_diffusers_torch_and_the_bundle_draw_the_same(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    config = stage.Config(text_encoder="fp16", unet="fp16", vae_decoder="fp16", prompts=("a red fox",), steps=2)
    bundle = read_bundle(stage.run(config, tiny_sd_checkpoint, tmp_path / "bundle").bundle)
    (settings,) = settings_for(bundle, PROMPT, seed=9, negative=NEGATIVE, steps=5, guidance=4.0)

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=5,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(9),
    ).images[0]  # pyright: ignore[reportAttributeAccessIssue]
    on_torch = Networks(**{part: Network(net) for part, net in modules(load_checkpoint(tiny_sd_checkpoint)).items()})
    expected = np.asarray(theirs).astype(int)
    assert np.ptp(expected) > 20  # not a blank
    assert np.abs(np.asarray(generate(bundle, on_torch, settings)).astype(int) - expected).max() <= 1
    drawn = np.asarray(generate(bundle, open_networks(bundle), settings)).astype(int)
    assert 10 * np.log10(255**2 / np.mean((drawn - expected) ** 2)) >= 30
