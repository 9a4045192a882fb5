"""The paper's Fig. 8: pictures of the same latents by the whole decoder and by a narrow one, at every guidance.

    python benchmarks/decoder_curve.py BASE NARROW --data SET [--guidances 2 4 7] [--steps 50] [--pictures N]
        [--work runs/decoder-curve] [--picture fig8.webp] [--json FILE]

BASE and NARROW are checkpoints that differ in their decoder alone. Latents are drawn by BASE (DDIM, UNet in bfloat16)
from the prompts of `cells`, kept in --work and read from there on the next run; judge B marks both decoders' pictures
of them. Since the latents are the same, what tells two points of a guidance apart is the decoder.
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
from snapfusion.checkpoint import Checkpoint, hash_of, load_checkpoint, load_vae
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.pairs import Pair, load_index
from snapfusion.data.prompts import prompt_of
from snapfusion.metrics import judge_b
from snapfusion.metrics.alignment import alignment
from snapfusion.metrics.features import VectorStore, image_vectors
from snapfusion.metrics.frechet import kid
from snapfusion.metrics.weights import default_cache
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.sampling import Sampling, decode, draw_latents, pixels
from snapfusion.weights import load_whole, save_whole

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("narrow", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="a built sticker set")
    parser.add_argument("--guidances", type=float, nargs="+", default=[2.0, 4.0, 7.0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pictures", type=int, help="by default all of `cells`")
    parser.add_argument("--work", type=Path, default=Path("runs/decoder-curve"), help="where latents are kept")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    pairs = load_index(options.data, core=True)
    reference = [pair for pair in pairs if pair.split == "cells"]
    asked = chosen(reference, options.pictures, "decoder curve")
    bench = open_bench(judge_b, options.data, pairs, VectorStore(default_cache() / "vectors.sqlite"), "cpu", None)
    real, base = bench.verdict(bench.real(asked), asked), load_checkpoint(options.base)
    decoders = {"whole": base.vae, "narrow": load_vae(options.narrow)}
    rows: list[dict[str, Any]] = []
    print(f"{'decoder':10}{'guidance':>10}{'alignment':>28}{'KID':>30}")
    for guidance in options.guidances:
        drawn = latents(
            base, asked, Sampling(options.steps, guidance, bf16=True), options.work / hash_of(options.base)[:12]
        )
        for name, vae in decoders.items():
            start = perf_counter()
            vectors = image_vectors(bench.backbone, pictures(vae, drawn))
            fits, far = alignment(bench.verdict(vectors, asked), real), kid(vectors, bench.real(reference))
            cells = [f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]" for one in (fits, far)]
            print(f"{name:10}{guidance:>10g}{cells[0]:>28}{cells[1]:>30}", flush=True)
            measured = {"alignment": asdict(fits), "kid": asdict(far), "seconds": perf_counter() - start}
            rows.append({"name": f"{name}, guidance {guidance:g}", "decoder": name, "guidance": guidance} | measured)
    if options.picture:
        plot(rows, options.picture)
    protocol = {"base": hash_of(options.base), "narrow": hash_of(options.narrow), "steps": options.steps}
    write_record(options.json, protocol | {"split": "cells", "pictures": len(asked), "judge": "B"}, rows)


def latents(base: Checkpoint, pairs: list[Pair], sampling: Sampling, work: Path) -> Tensor:
    """Latents `[N, C, h, w]` of the pairs' prompts and seeds."""
    file = work / f"{sampling.steps}-{sampling.guidance:g}-{len(pairs)}.safetensors"
    if not file.is_file():
        parts = [pairs[first : first + BATCH] for first in range(0, len(pairs), BATCH)]
        drawn = [draw_latents(base, [*map(prompt_of, part)], [*map(seed_of, part)], sampling) for part in parts]
        save_whole({"latents": torch.cat(drawn)}, file, {})
    return load_whole(file)[1]["latents"]


def pictures(vae: PatchAutoencoderKL, drawn: Tensor) -> Iterator[NDArray[np.uint8]]:
    """Batches `[<= BATCH, H, W, 3]`."""
    for part in drawn.split(BATCH):
        yield np.stack(list(pixels(decode(vae, part))))


def around(rows: list[dict[str, Any]], figure: str) -> list[list[float]]:
    """How far the intervals of a figure reach below and above it `[2, rows]`."""
    found = [row[figure] for row in rows]
    return [[one["value"] - one["low"] for one in found], [one["high"] - one["value"] for one in found]]


def plot(rows: list[dict[str, Any]], picture: Path) -> None:
    """A line for each decoder, a point with its intervals for each guidance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["decoder"] for row in rows):
        points = [row for row in rows if row["decoder"] == name]
        x, y = ([row[key]["value"] for row in points] for key in ("alignment", "kid"))
        lines, *_ = axes.errorbar(x, y, around(points, "kid"), around(points, "alignment"), "o-", elinewidth=0.5)
        lines.set_label(f"{name} decoder")
        for row, place in zip(points, zip(x, y, strict=True), strict=True):
            axes.annotate(f"{row['guidance']:g}", place, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="alignment", ylabel="KID")
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
