"""A checkpoint that we wrote, drawn by diffusers in a process of its own and by us: the same latent, and back again."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from snapfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from snapfusion.diffusion.guidance import guide
from snapfusion.diffusion.noise import randn
from snapfusion.diffusion.sampler import Scheduler, sample
from snapfusion.model.architecture import Architecture
from snapfusion.stages.evaluate.cross_check import cross_check
from snapfusion.stages.evaluate.exam import Request
from snapfusion.tokens import tokenize

PROMPT, NEGATIVE, STEPS, GUIDANCE, SEED = "a red fox, 3D render of the blue whale", "flat", 4, 7.5, 3

DRAW_WITH_DIFFUSERS = f"""
import sys
from pathlib import Path
import numpy
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

out = Path(sys.argv[2])
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipeline) is StableDiffusionPipeline and type(pipeline.scheduler) is DDIMScheduler
assert not any(name.startswith("snapfusion") for name in sys.modules)
settings = dict(prompt={PROMPT!r}, negative_prompt={NEGATIVE!r}, num_inference_steps={STEPS}, guidance_scale={GUIDANCE})
for kind in ("latent", "np"):
    generator = torch.Generator("cpu").manual_seed({SEED})
    result = pipeline(**settings, generator=generator, output_type=kind).images
    numpy.save(out / f"{{kind}}.npy", numpy.asarray(result))
pipeline.save_pretrained(out / "again", safe_serialization=True)
"""


@torch.no_grad()
def draw(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """The latent [1, 4, 16, 16] and the image [1, 3, 64, 64] in 0..1."""
    tokens, _ = tokenize(checkpoint.tokenizer, [PROMPT, NEGATIVE], checkpoint.length)
    embedding = checkpoint.text_encoder(torch.from_numpy(tokens))

    def predict(latent: torch.Tensor, t: int) -> torch.Tensor:
        cond, uncond = checkpoint.unet(latent.expand(2, -1, -1, -1), t, embedding).sample.split(1)
        return guide(cond, uncond, GUIDANCE)

    *_, latent = sample(predict, checkpoint.schedule, torch.from_numpy(randn((1, 4, 16, 16), SEED)), STEPS)
    image = checkpoint.vae.decode(latent / checkpoint.vae.config["scaling_factor"]).sample
    return latent, (image / 2 + 0.5).clamp(0, 1)


def test_diffusers_draws_the_same_and_saves_what_we_load(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    script = [sys.executable, "-c", DRAW_WITH_DIFFUSERS, str(tiny_sd_checkpoint), str(tmp_path)]
    subprocess.run(script, check=True, capture_output=True, text=True)
    checkpoint = load_checkpoint(tiny_sd_checkpoint)
    latent, image = draw(checkpoint)

    theirs = torch.from_numpy(np.load(tmp_path / "latent.npy"))
    assert (latent - theirs).norm() / theirs.norm() < 1e-4
    their_image = torch.from_numpy(np.load(tmp_path / "np.npy")).permute(0, 3, 1, 2)
    torch.testing.assert_close(image, their_image, rtol=0, atol=1e-4)

    again = load_checkpoint(tmp_path / "again")
    assert again.schedule == checkpoint.schedule
    assert again.length == checkpoint.length
    for part in ("text_encoder", "unet", "vae"):
        before, after = getattr(checkpoint, part).state_dict(), getattr(again, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", get_args(Scheduler))
@pytest.mark.parametrize("architecture", ["sd15", "table3"])
def test_fifty_steps_of_every_scheduler_are_those_of_diffusers(
    tiny_sd_checkpoint: Path, tmp_path: Path, architecture: str, scheduler: Scheduler
) -> None:
    """Each side reads the networks' files by itself; the evolved UNet is ours in both."""
    checkpoint = load_checkpoint(tiny_sd_checkpoint)
    wanted = getattr(Architecture, architecture)(checkpoint.unet.architecture.widths)
    save_checkpoint(replace(checkpoint, unet=checkpoint.unet.evolve(wanted, start="same")), tmp_path)
    found = cross_check(tmp_path, load_checkpoint(tmp_path), [Request("fox", PROMPT, SEED)], 50, GUIDANCE, scheduler)
    assert found is not None
    assert found.relative_error < 1e-4
    assert f"50 steps of {scheduler}, guidance 7.5" in found.describe()
