"""What each engine and precision costs, side by side in one run: milliseconds, size, nearness to torch.

    snapfusion export models/stickers-base --out runs/bf16 --precision fp16
    snapfusion export models/stickers-base --out runs/w8a8 --precision w8a8
    python benchmarks/engines.py runs/bf16 runs/w8a8 [--runs 20] [--threads 2] [--json FILE]

A row for each part of each runtime that a bundle holds and that is installed. They are called in turns, so that what
slows the machine down slows all; medians after one call that does not count, with the range of the middle half, and
how often the first bundle's time fits in. Rows are as guidance has them: two for text encoder and UNet. Decibels and
memory are the manifest's, which `export` measured on real inputs. Time on a machine that does nothing else.
"""

import argparse
import os
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from numpy.typing import NDArray

from record import write_record
from snapfusion.bundle import Bundle, Network, read_bundle
from snapfusion.runtimes.choice import PARTS, Part, is_installed
from snapfusion.stages.export.footprint import blank_inputs, size_of


def opened(folders: list[Path]) -> list[Bundle]:
    """Every bundle once for each of its runtimes that is installed."""
    held = [(folder, runtime) for folder in folders for runtime in read_bundle(folder).manifest.runtimes]
    return [read_bundle(folder, runtime) for folder, runtime in held if is_installed(runtime)]


def inputs_of(bundle: Bundle, part: Part, rows: int) -> dict[str, NDArray[Any]]:
    """Random latents and embeddings: zeros would be faster than what is drawn."""
    rng = np.random.default_rng(0)
    blank = blank_inputs(bundle, part, rows)
    return {
        name: rng.standard_normal(array.shape, np.float32) if array.dtype == np.float32 else array
        for name, array in blank.items()
    }


def time_in_turns(networks: list[Network], inputs: list[dict[str, NDArray[Any]]], runs: int) -> list[list[float]]:
    """Milliseconds of `runs` calls of each network."""
    taken: list[list[float]] = [[] for _ in networks]
    for run in range(runs + 1):
        for network, given, times in zip(networks, inputs, taken, strict=True):
            start = time.perf_counter()
            network(**given)
            if run:
                times.append(1000 * (time.perf_counter() - start))
    return taken


def rows_of(bundles: list[Bundle], part: Part, runs: int, threads: int | None) -> list[dict[str, Any]]:
    """What each bundle's network of one part costs."""
    rows = 1 if part == "vae_decoder" else 2
    networks = [bundle.open(part, rows, threads) for bundle in bundles]
    taken = time_in_turns(networks, [inputs_of(bundle, part, rows) for bundle in bundles], runs)
    found = []
    for bundle, times in zip(bundles, taken, strict=True):
        low, _, high = quantiles(times, n=4)
        parity = bundle.manifest.figures["parity"]
        told = parity.get(bundle.runtime, parity)[part]  # bundles of the first format hold one runtime
        found.append(
            {
                "part": part,
                "bundle": bundle.folder.name,
                "runtime": bundle.runtime,
                "precision": bundle.manifest.runtimes[bundle.runtime][part],
                "ms": round(median(times), 2),
                "middle_half_ms": [round(low, 2), round(high, 2)],
                "times_faster": round(median(a / b for a, b in zip(taken[0], times, strict=True)), 2),
                "bytes": size_of(bundle.folder / part, bundle.runtime, part),
                **{name: told[name] for name in ("psnr_db", "load_seconds", "peak_bytes") if name in told},
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    bundles = opened(options.bundles)
    rows = [row for part in PARTS for row in rows_of(bundles, part, options.runs, options.threads)]
    print(
        f"{'part':14}{'bundle':14}{'runtime':12}{'stored':8}{'ms':>9}{'middle half':>18}{'faster':>8}{'dB':>7}{'MB':>8}"
    )
    for row in rows:
        low, high = row["middle_half_ms"]
        print(
            f"{row['part']:14}{row['bundle']:14.13}{row['runtime']:12}{row['precision']:8}{row['ms']:9.2f}"
            f"{low:9.2f}-{high:<8.2f}{row['times_faster']:7.2f}x{row['psnr_db']:7.1f}{row['bytes'] / 1e6:8.1f}"
        )
    protocol = {
        "runs": options.runs,
        "threads": options.threads,
        "busy": os.getloadavg()[0],
        "bundles": {str(bundle.folder): bundle.hash for bundle in bundles},
    }
    named = [
        {"name": f"{row['bundle']}, {row['runtime']}, {row['part']}", "seconds": row["ms"] / 1000, **row}
        for row in rows
    ]
    write_record(options.json, protocol, named)


if __name__ == "__main__":
    main()
