"""How much of a picture an autoencoder keeps: held-out stickers through the encoder and back.

    python benchmarks/autoencoder.py CHECKPOINT --data SET [--pictures 96] [--judged] [--json FILE]

SET is what `snapfusion data stickers` built. The pictures are of its split `cells`, drawn with seed 0; the latent is
the encoder's mean; float32. The bar for a sticker base: 28 dB and LPIPS 0.10.

--judged: what judge B makes of them, as if they had been drawn. No UNet on these latents can be expected to do better.
All pictures of `cells` in `core`, and 400 of `train` that the judge was not trained on.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from record import write_record
from snapfusion.bench import open_bench
from snapfusion.checkpoint import load_vae
from snapfusion.data.choice import chosen
from snapfusion.data.pairs import load_index, read_images
from snapfusion.latents import encode_images
from snapfusion.metrics import judge_b
from snapfusion.metrics.alignment import alignment
from snapfusion.metrics.features import VectorStore, image_vectors
from snapfusion.metrics.fidelity import psnr, psnr_drawn
from snapfusion.metrics.frechet import kid
from snapfusion.metrics.lpips import load_lpips
from snapfusion.metrics.weights import default_cache
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.sampling import decode, pixels

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


def judged(vae: PatchAutoencoderKL, data: Path) -> list[dict[str, Any]]:
    """Judge B's figures of real pictures that went through the autoencoder, and of the pictures themselves."""
    pairs, store = load_index(data, core=True), VectorStore(default_cache() / "vectors.sqlite")
    bench = open_bench(judge_b, data, pairs, store, "cpu", None)
    rows = []
    for split, count in (("cells", None), ("train", 400)):
        reference = [pair for pair in pairs if pair.split == split]
        asked = chosen(bench.unseen(reference), count, split)
        start = perf_counter()
        vectors = image_vectors(bench.backbone, through(vae, read_images(data, asked)))
        seconds = perf_counter() - start
        found, real = bench.verdict(vectors, asked), bench.verdict(bench.real(asked), asked)
        estimates = {
            "kid": kid(vectors, bench.real(reference)),
            "alignment": alignment(found, real),
            "recall_at_10": found.recall(),
            "recall_at_10_real": real.recall(),
            "style": found.style_accuracy(),
            "style_real": real.style_accuracy(),
        }
        row = {"name": f"{split}, judged", "seconds": seconds, "pictures": len(asked)}
        rows.append(row | {name: asdict(one) for name, one in estimates.items()})
        print(f"{split}: {len(asked)} pictures")
        for name, one in estimates.items():
            print(f"  {name:20}{one.value:>8.3f}  [{one.low:.3f}, {one.high:.3f}]")
    return rows


@torch.inference_mode()
def through(vae: PatchAutoencoderKL, images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Batches `[<= BATCH, H, W, 3]` of pictures `[N, H, W, 3]`, encoded and decoded."""
    for latent in encode_images(images, vae).split(BATCH):
        yield np.stack(list(pixels(decode(vae, latent * vae.config["scaling_factor"]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--judged", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    images = held_out(options.data, options.pictures)
    vae = load_vae(options.checkpoint).eval()
    row = {"name": str(options.checkpoint)} | measure(vae, images)
    print(f"{row['name']}: {row['psnr_db']:.1f} dB, on drawn pixels {row['psnr_drawn_db']:.1f} dB, ", end="")
    print(f"LPIPS {row['lpips']:.3f} ({len(images)} pictures, {1000 * row['seconds']:.0f} ms each)")
    rows = [row, *(judged(vae, options.data) if options.judged else [])]
    protocol = {"split": "cells", "pictures": len(images), "seed": 0, "torch": torch.__version__}
    write_record(options.json, protocol, rows)


if __name__ == "__main__":
    main()
