"""Our pictures beside those of diffusers' pipeline at Stable Diffusion v1.5's size, with random weights.

    python benchmarks/parity.py [--size sd15|tiny] [--steps 8] [--scheduler ddim] [--guidance 7.5] [--json FILE]

Three ways to draw one prompt from one seed, in float32 on the CPU: our sampling with our networks; diffusers'
`StableDiffusionPipeline` with our networks in it; the same with diffusers' own classes. The weights are the same
tensors in all three, as their classes draw them at random, so nothing is downloaded. Rows: how far the latents are from
ours, |theirs - ours| / |ours|, and the picture that each side decodes from its latent. At the size of v1.5 the weights
alone are 4.3 GB; `--size tiny` is the same at a twentieth of the widths.

Exit status 1 where a row is further off than 1e-4.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from record import write_record
from sd15 import checkpoint_of
from snapfusion.checkpoint import Checkpoint
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.model.configs import config_of_unet, config_of_vae
from snapfusion.sampling import Sampling, decode, draw_latents
from snapfusion.stages.evaluate.cross_check import TOLERANCE, scheduler_of_diffusers
from snapfusion.tokens import write_tokenizer

PROMPT = "a red fox, 3D render"


def pipeline_of(checkpoint: Checkpoint, scheduler: Scheduler, theirs: bool) -> Any:
    """diffusers' pipeline around our UNet and decoder, or around classes of its own that share their weights."""
    unet: Any = checkpoint.unet
    vae: Any = checkpoint.vae
    if theirs:
        with init_empty_weights():
            unet = UNet2DConditionModel.from_config(config_of_unet(checkpoint.unet))
            vae = AutoencoderKL.from_config(config_of_vae(checkpoint.vae))
        for network, source in ((unet, checkpoint.unet), (vae, checkpoint.vae)):
            network.load_state_dict(source.state_dict(), assign=True)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(checkpoint.tokenizer, checkpoint.length, Path(folder))
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    pipeline: Any = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=checkpoint.text_encoder.model,
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler_of_diffusers(scheduler, checkpoint.schedule.to_config()),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by(pipeline: Any, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The latent and the image in 0..1, from torch's own generator."""
    with torch.no_grad():
        latent = pipeline(
            PROMPT,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=torch.Generator().manual_seed(options.seed),
            output_type="latent",
        ).images
        image = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    return latent, (image / 2 + 0.5).clamp(0, 1)


def distance(theirs: Tensor, ours: Tensor) -> float:
    return ((theirs - ours).norm() / ours.norm()).item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("sd15", "tiny"), default="sd15")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--scheduler", choices=get_args(Scheduler), default="ddim")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    checkpoint = checkpoint_of(options.size, options.seed)
    start = time.perf_counter()
    latent = draw_latents(
        checkpoint, [PROMPT], [options.seed], Sampling(options.steps, options.guidance, options.scheduler)
    )
    image = decode(checkpoint.vae, latent)
    seconds = {"ours": time.perf_counter() - start}
    rows: dict[str, dict[str, float]] = {}
    for name, own in (("diffusers' pipeline, our networks", False), ("diffusers' pipeline and networks", True)):
        pipeline = pipeline_of(checkpoint, options.scheduler, own)
        start = time.perf_counter()
        their_latent, their_image = drawn_by(pipeline, options)
        seconds[name] = time.perf_counter() - start
        rows[name] = {"latents": distance(their_latent, latent), "pictures": distance(their_image, image)}

    parts = checkpoint.text_encoder, checkpoint.unet, checkpoint.vae
    parameters = sum(weight.numel() for part in parts for weight in part.parameters())
    print(
        f"{options.size}, {parameters / 1e6:.1f}M parameters, float32, {options.steps} steps of {options.scheduler}, "
        f"guidance {options.guidance:g}, latents {list(latent.shape)} of deviation {latent.std().item():.3f}"
    )
    print(f"{'against ours, relative':<36}{'latents':>10}{'pictures':>10}{'seconds':>10}")
    print(f"{'our sampling and networks':<36}{0:>10}{0:>10}{seconds['ours']:>10.1f}")
    for name, row in rows.items():
        print(f"{name:<36}{row['latents']:>10.1e}{row['pictures']:>10.1e}{seconds[name]:>10.1f}")
    passed = all(row["latents"] <= TOLERANCE for row in rows.values())
    print(f"{'equal' if passed else 'NOT EQUAL'}, tolerance {TOLERANCE:g}")
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    found = [{"name": name, "seconds": taken, **rows.get(name, {})} for name, taken in seconds.items()]
    protocol = {**settings, "prompt": PROMPT, "tolerance": TOLERANCE, "torch": torch.__version__}
    write_record(options.json, protocol, found, passed=passed)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
