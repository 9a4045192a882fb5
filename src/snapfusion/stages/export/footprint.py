"""What a network takes: bytes on disk; in a process of its own, seconds to open it and memory to run it."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfusion.bundle import PARTS, Bundle, Part, read_bundle
from snapfusion.generate import unet_rows
from snapfusion.json_file import read_json
from snapfusion.runtimes.choice import RUNTIMES, Runtime, load

log = logging.getLogger(__name__)

STATUS = Path("/proc/self/status")
MEASURE = """
import sys
from pathlib import Path
from snapfusion.stages.export.footprint import print_footprint
folder, runtime, part, *rows = sys.argv[1:]
print_footprint(Path(folder), runtime, part, [*map(int, rows)])
"""


def footprints(folder: Path, runtime: Runtime, rows: Sequence[int] | None = None) -> dict[str, dict[str, Any]]:
    """By part: `bytes`, `load_seconds`, and on Linux `peak_bytes`, the most memory beyond the bare process; of one that
    the system kills for its memory, `bytes` alone.

    `rows` are those that the UNet is called with (`generate.unet_rows`); None for what the bundle draws with.
    """
    if rows is None:
        defaults = read_bundle(folder, runtime).manifest.defaults
        rows = unet_rows(defaults.steps, defaults.guidance, defaults.guidance_stop)
    taken: dict[Part, Sequence[int]] = {"text_encoder": rows[:1], "unet": rows, "vae_decoder": [1]}
    return {part: _footprint(folder, runtime, part, taken[part]) for part in PARTS}


def _footprint(folder: Path, runtime: Runtime, part: Part, rows: Sequence[int]) -> dict[str, Any]:
    command = [sys.executable, "-c", MEASURE, str(folder.resolve()), runtime, part, *map(str, rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:  # killed from outside, as a system does that lacks memory: this process goes on without
        log.warning("not measured: what the %s takes in a process of its own, for that was killed", part)
        return {"bytes": size_of(folder / part, runtime, part)}
    if done.returncode != 0:
        raise RuntimeError(f"a process that runs the {part} failed: {done.stderr.strip()[-500:]}")
    return {"bytes": size_of(folder / part, runtime, part), **json.loads(done.stdout.splitlines()[-1])}


def print_footprint(folder: Path, runtime: Runtime, part: Part, rows: Sequence[int]) -> None:
    """What the other process does: open one network, run it once with each number of rows that drawing has, and print
    the figures as JSON."""
    bundle = read_bundle(folder, runtime)
    load(runtime)  # its import is not the network's
    before, start = _peak(), time.perf_counter()
    network = bundle.open(part, rows[0], None, rows[1:])
    seconds = time.perf_counter() - start
    for count in rows:
        network(**blank_inputs(bundle, part, count))
    figures: dict[str, float] = {"load_seconds": round(seconds, 3)}
    if before is not None and (peak := _peak()) is not None:
        figures["peak_bytes"] = peak - before
    print(json.dumps(figures))


def blank_inputs(bundle: Bundle, part: Part, rows: int) -> dict[str, NDArray[Any]]:
    """Zeros of the shapes that a part is called with."""
    if part == "text_encoder":
        return {"input_ids": np.ones((rows, bundle.length), np.int64)}
    latent = np.zeros((rows, *bundle.latent_shape), np.float32)
    if part == "vae_decoder":
        return {"latent_sample": latent}
    width = read_json(bundle.folder / "unet" / "config.json")["cross_attention_dim"]
    embedding = np.zeros((rows, bundle.length, width), np.float32)
    return {"sample": latent, "timestep": np.array([1]), "encoder_hidden_states": embedding}


def size_of(folder: Path, runtime: Runtime, part: Part) -> int:
    """Bytes of a runtime's files in a part's folder: those that begin as the ones that it must hold."""
    begin = tuple(name.split("/")[0] for name in RUNTIMES[runtime].files[part])
    names = ((file, file.relative_to(folder).as_posix()) for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file, name in names if name.startswith(begin))


def _peak() -> int | None:
    """The most memory that this process held, bytes; None where the system does not say."""
    if not STATUS.is_file():
        return None
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024
