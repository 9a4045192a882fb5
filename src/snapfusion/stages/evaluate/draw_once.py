"""What a process of its own does to draw one picture with a checkpoint, and no more: what is timed as a cold start."""

from pathlib import Path

from torch import nn

from snapfusion.checkpoint import load_checkpoint
from snapfusion.sampling import Sampling, decode, draw_latents, pixels


def draw_once(folder: Path, device: str, sampling: Sampling, prompt: str, seed: int) -> None:
    """Open the checkpoint in `folder` and draw `prompt`."""
    checkpoint = load_checkpoint(folder)
    networks: list[nn.Module] = [checkpoint.text_encoder, checkpoint.unet, checkpoint.vae]
    for network in networks:
        network.to(device).eval()
    pixels(decode(checkpoint.vae, draw_latents(checkpoint, [prompt], [seed], sampling)))
