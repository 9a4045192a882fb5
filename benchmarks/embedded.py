"""How fast the embedded bundle draws, beside the checkpoint it was made from in torch, side by side in one run.

    python benchmarks/embedded.py [--checkpoint models/stickers-base] [--runs 5] [--json FILE]

Rows: a cold process (`snapfusion generate` from nothing to a file), a warm picture of the bundle, and the checkpoint's
picture in 50 steps of DDIM by networks of torch in float32 and, where the CPU has it, in bfloat16, all by the same
code. Medians of `--runs`; all draw the same prompt and seed.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from record import write_record
from rivals import PROMPT, SEED
from snapfusion.autocast import autocast, has_bf16
from snapfusion.bundle import EMBEDDED, Networks, read_bundle
from snapfusion.checkpoint import load_checkpoint
from snapfusion.generate import generate, open_networks
from snapfusion.runtimes.torch import Network
from snapfusion.settings import settings_for
from snapfusion.stages.export.modules import modules

STEPS = 50  # of the checkpoint


class Autocast:
    """A network that computes in bfloat16 where torch can."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        module = self.network.module
        with torch.inference_mode(), autocast(torch.device("cpu")):
            return module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).float().numpy()


def timed(draw: Callable[[], object], runs: int) -> list[float]:
    """Seconds of `runs` calls, after one that does not count."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        draw()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def cold(steps: int) -> None:
    """Draw one picture in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "snapfusion", "generate", PROMPT, "--seed", str(SEED), "--steps", str(steps)]
        subprocess.run([*command, "--quiet", "--out", f"{folder}/picture.png"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("models/stickers-base"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, help="by default the bundle's own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    bundle = read_bundle(EMBEDDED)
    steps = options.steps or bundle.manifest.defaults.steps
    (settings,) = settings_for(bundle, PROMPT, seed=SEED, steps=steps)
    loaded = load_checkpoint(options.checkpoint)
    base = replace(bundle, schedule=loaded.schedule)
    as_base = replace(settings, steps=STEPS, scheduler="ddim", guidance_stop=1.0)
    parts = {name: Network(module) for name, module in modules(loaded).items()}
    drawn: dict[str, Callable[[], object]] = {
        "bundle, cold process": lambda: cold(steps),
        "bundle, warm": partial(generate, bundle, open_networks(bundle), settings),
    }
    if has_bf16(torch.device("cpu")):
        halves = Networks(**{name: Autocast(network) for name, network in parts.items()})
        drawn[f"torch bfloat16, {STEPS} steps"] = partial(generate, base, halves, as_base)
    drawn[f"torch float32, {STEPS} steps"] = partial(generate, base, Networks(**parts), as_base)
    rows: list[dict[str, Any]] = [{"name": name, "all": timed(draw, options.runs)} for name, draw in drawn.items()]
    for row in rows:
        row["seconds"] = median(row["all"])
    slowest = rows[-1]["seconds"]
    print(f"{'':24}{'seconds':>10}{'spread':>18}{'times faster':>14}")
    for row in rows:
        spread = f"{min(row['all']):.3f}-{max(row['all']):.3f}"
        print(f"{row['name']:24}{row['seconds']:>10.3f}{spread:>18}{slowest / row['seconds']:>14.1f}")
    protocol = {
        "prompt": PROMPT,
        "seed": SEED,
        "steps": steps,
        "steps_in_torch": STEPS,
        "guidance": settings.guidance,
        "scheduler": settings.scheduler,
        "size": bundle.image_size,
        "runs": options.runs,
        "bundle": bundle.hash,
        "torch": torch.__version__,
        "openvino": openvino.__version__,
    }
    write_record(options.json, protocol, rows)


if __name__ == "__main__":
    main()
