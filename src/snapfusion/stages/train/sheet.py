"""Looking at a UNet while it trains: a sheet of fixed prompts, and the loss on pictures that it never saw."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from snapfusion.autocast import autocast
from snapfusion.denoising import denoising_loss, draw_batch
from snapfusion.diffusion.schedule import Schedule
from snapfusion.latents import HALF_MIRRORED, Cache, Shares

PROMPTS = (
    "a fox, 3D render", "a strawberry, soft gradient", "a rocket, cartoon", "a castle, black silhouette",
    "a blue apple, 3D render", "a sunflower, cartoon", "an elephant, soft gradient", "a guitar, black silhouette",
    "a hamburger, 3D render", "a sailboat, cartoon", "a green dress, soft gradient", "a spider, black silhouette",
    "a robot, 3D render", "a penguin, cartoon", "a volcano, soft gradient", "a bicycle, black silhouette",
    "a purple car, cartoon", "an owl, 3D render", "a birthday cake, soft gradient",
    "a smiling face with sunglasses, 3D render",
    "a cup of coffee", "a dragon, 3D render", "a house with a garden, cartoon", "a pineapple, soft gradient",
)  # fmt: skip


def tile(images: np.ndarray, columns: int, side: int = 128) -> Image.Image:
    """Pictures `[N, H, W, 3]` as one sheet, row by row, each `side` pixels wide."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for index, image in enumerate(images):
        small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (index % columns * side, index // columns * side))
    return sheet


@torch.inference_mode()
def held_out_loss(
    unet: nn.Module, cache: Cache, schedule: Schedule, shares: Shares = HALF_MIRRORED, batches: int = 8, batch: int = 64
) -> float:
    """Mean denoising loss on held-out pictures; the same pictures, steps and noise at every call."""
    total = 0.0
    for index in range(batches):
        drawn = draw_batch(cache, schedule, batch, 0, index, shares)
        with autocast(cache.latents.device):
            total += denoising_loss(unet, drawn).item()
    return total / batches
