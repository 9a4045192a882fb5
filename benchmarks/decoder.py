"""How much faster a decoder of half the channels is, beside the full one, side by side in one run.

    python benchmarks/decoder.py [--sizes base sd15] [--runs 9] [--weights fp16] [--json FILE]

Rows, for the stickers base (256 px) and for Stable Diffusion v1.5 (512 px): the full decoder, half of it, the tiny one;
random weights, since speed does not depend on them, in OpenVINO, one picture a call, called in turns. The paper's half
is 3.2 times as fast as the full one on a phone (section 3.3).
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch.utils.flop_counter import FlopCounterMode

from record import write_record
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.parts import Decoder
from snapfusion.runtimes import openvino
from snapfusion.stages.distill_decoder.students import half, tiny
from snapfusion.stages.train.autoencoder import sticker_autoencoder

BAR = 3.2  # the paper's, asked of Stable Diffusion's size


def stable_diffusions_autoencoder() -> PatchAutoencoderKL:
    """Stable Diffusion v1.5's, 512 px -> `[4, 64, 64]`."""
    widths = (128, 256, 512, 512)
    return PatchAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        sample_size=512,
    )


SIZES: dict[str, Callable[[], PatchAutoencoderKL]] = {
    "base": sticker_autoencoder,
    "sd15": stable_diffusions_autoencoder,
}


def measure(size: str, weights: openvino.Weights, runs: int) -> list[dict[str, Any]]:
    """A row for each decoder of one size: milliseconds of `runs` calls in turns, after one that does not count."""
    torch.manual_seed(0)
    full = SIZES[size]().eval()
    decoders = {"full": full, "half": half(full, "magnitude", seed=0), "tiny": tiny(full, seed=0)}
    side = full.config["sample_size"] // full.factor
    latent = np.random.default_rng(0).standard_normal((1, full.config["latent_channels"], side, side), np.float32)
    networks, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, vae in decoders.items():
            example = {"latent_sample": torch.zeros(2, *latent.shape[1:])}
            module = Decoder(vae).requires_grad_(False)  # else tracing keeps every activation: gigabytes
            with warnings.catch_warnings(action="ignore"):  # tracing takes sizes for fixed, which here they are
                openvino.export(module, example, "sample", Path(folder, name), weights)
            networks.append(openvino.open(Path(folder, name), batch=1))
            parameters = sum(weight.numel() for weight in vae.decoder.parameters())
            rows.append({"size": size, "decoder": name, "parameters": parameters, "macs": macs(vae, latent), "ms": []})
        for run in range(runs + 1):
            for row, network in zip(rows, networks, strict=True):
                start = perf_counter()
                network(latent_sample=latent)
                if run:
                    row["ms"].append(1000 * (perf_counter() - start))
    for row in rows:
        row["times_faster"] = median(a / b for a, b in zip(rows[0]["ms"], row["ms"], strict=True))
    return rows


def macs(vae: PatchAutoencoderKL, latent: np.ndarray) -> int:
    """Multiplications of one picture."""
    sketch = deepcopy(vae)
    torch.nn.Module.to(sketch, "meta")
    with FlopCounterMode(display=False) as counter:
        sketch.decode(torch.empty(latent.shape, device="meta"))
    return counter.get_total_flops() // 2


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'':14}{'parameters':>12}{'GMACs':>9}{'ms':>10}{'spread':>18}{'times faster':>14}")
    for row in rows:
        spread = f"{min(row['ms']):.1f}-{max(row['ms']):.1f}"
        name, size = f"{row['size']} {row['decoder']}", f"{row['parameters'] / 1e6:.2f}M"
        figures = f"{row['macs'] / 1e9:>9.2f}{median(row['ms']):>10.1f}{spread:>18}{row['times_faster']:>14.2f}"
        print(f"{name:14}{size:>12}{figures}")
        if (row["size"], row["decoder"]) == ("sd15", "half"):
            print(f"{'':14}the paper's: {BAR}; {'reached' if row['times_faster'] >= BAR else 'not reached'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--weights", choices=("fp16", "int8"), default="fp16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    rows = [row for size in options.sizes for row in measure(size, options.weights, options.runs)]
    show(rows)
    protocol = {
        "batch": 1,
        "runs": options.runs,
        "weights": options.weights,
        "precision": openvino.precision(),
        "openvino": ov.__version__,
    }
    named = [{"name": f"{row['size']} {row['decoder']}", "seconds": median(row["ms"]) / 1000, **row} for row in rows]
    write_record(options.json, protocol, named)


if __name__ == "__main__":
    main()
