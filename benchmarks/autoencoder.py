"""How much of a picture an autoencoder keeps: held-out stickers through the encoder and back.

    python benchmarks/autoencoder.py CHECKPOINT --data SET [--pictures 96] [--json FILE]

SET is what `snapfusion data stickers` built. The pictures are of its split `cells`, drawn with seed 0; the latent is
the encoder's mean; float32. The bar for a sticker base: 28 dB and LPIPS 0.10.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snapfusion.checkpoint import load_vae
from snapfusion.data.pairs import load_index, read_images
from snapfusion.metrics.fidelity import psnr, psnr_drawn
from snapfusion.metrics.lpips import load_lpips
from snapfusion.model.decoder import PatchAutoencoderKL

BATCH = 8


@torch.inference_mode()
def measure(vae: PatchAutoencoderKL, images: Tensor) -> dict[str, Any]:
    """Means over images `[N, 3, H, W]` in 0..1, and the seconds that an image took."""
    lpips, seconds = load_lpips(), 0.0
    found: dict[str, list[Tensor]] = {"psnr_db": [], "psnr_drawn_db": [], "lpips": []}
    for batch in images.split(BATCH):
        start = perf_counter()
        drawn = vae.decode(vae.encode(2 * batch - 1).latent_dist.mean).sample
        seconds += perf_counter() - start
        drawn = (drawn / 2 + 0.5).clamp(0, 1)
        for name, distance in (("psnr_db", psnr), ("psnr_drawn_db", psnr_drawn), ("lpips", lpips)):
            found[name].append(distance(drawn, batch))
    means = {name: torch.cat(values).nanmean().item() for name, values in found.items()}
    return means | {"seconds": seconds / len(images)}


def held_out(data: Path, count: int) -> Tensor:
    """`count` held-out pictures of a set, `[N, 3, H, W]` in 0..1."""
    pairs = [pair for pair in load_index(data) if pair.split == "cells"]
    chosen = [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))[:count]]
    return torch.from_numpy(read_images(data, chosen)).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    images = held_out(options.data, options.pictures)
    row = {"name": str(options.checkpoint)} | measure(load_vae(options.checkpoint).eval(), images)
    print(f"{row['name']}: {row['psnr_db']:.1f} dB, on drawn pixels {row['psnr_drawn_db']:.1f} dB, ", end="")
    print(f"LPIPS {row['lpips']:.3f} ({len(images)} pictures, {1000 * row['seconds']:.0f} ms each)")
    if options.json:
        machine = {"cores": os.cpu_count(), "machine": platform.processor() or platform.machine()}
        protocol = {"split": "cells", "pictures": len(images), "seed": 0, "torch": torch.__version__} | machine
        options.json.write_text(json.dumps({"protocol": protocol, "rows": [row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
