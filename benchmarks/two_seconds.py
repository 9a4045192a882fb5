"""A picture of 512x512 at Stable Diffusion v1.5's size, prompt to PNG: ours beside what can be installed, in one run.

    snapfusion profile sd15 --out runs/profile-sd15
    snapfusion evolve --price-only sd15 --table runs/profile-sd15/table.json --budget-ms 490 --out runs/sd15 \
        --scores runs/evolve/rounds/00/round.json
    python benchmarks/two_seconds.py --cpu2s runs/sd15/490ms/architecture.json [--rows NAME...] [--json FILE]

Weights are random, which changes no time: this measures speed, not pictures. Bundles are made under --work on the first
run and found there on the next. `table3` is the paper's UNet, `sdxs-1` a UNet of SDXS' shape with AutoencoderTiny's
decoder. `cpu2s` is what --price-only finds for 0.30 s an evaluation in int8: 490 ms of a table in bfloat16 where int8
takes 0.61 of that, as of a first such UNet it did. Where the row of `ours-cpu2s-8x1` is over 0.30 s, ask for less.

Warm: the median of --runs pictures after one that does not count; where a picture takes more than a minute, 3 steps are
timed and scaled, which the row says. Cold: one process of its own, from its start to its end, its files in the system's
cache; `peak GB` is the most memory that it held. `of peak` is the operations of the networks over the time in them, as
a share of what the engine reaches in matrix multiplications. `host` is the share of a picture spent outside networks.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

import rivals
import sd15
from peaks import peak_speed
from random_bundles import Bundles, Model
from record import write_record
from rivals import PROMPT, SEED, Clock, Draw
from snapfusion import __version__
from snapfusion.bundle import PARTS, Networks, read_bundle
from snapfusion.checkpoint import save_checkpoint
from snapfusion.generate import generate, open_networks
from snapfusion.json_file import read_json
from snapfusion.model.architecture import Architecture
from snapfusion.png import encode_png
from snapfusion.runtimes import openvino
from snapfusion.settings import settings_for
from snapfusion.stages.evaluate.cost import macs_of_picture
from snapfusion.stages.evaluate.speed import machine, time_a_process
from snapfusion.stages.export.footprint import footprints

LONG = 60.0  # seconds
SAMPLED = 3  # steps that are timed of a longer picture
NO_GUIDANCE, GUIDANCE = 1.0, 7.5
UNET_ROWS = {NO_GUIDANCE: (1,), GUIDANCE: (2,)}


@dataclass(frozen=True)
class Row:
    """A way to draw a picture."""

    program: Literal["diffusers", "genai", "ours"]
    unet: str
    decoder: sd15.Decoder
    precision: Literal["fp32", "bf16", "int8"]
    steps: int
    guidance: float = GUIDANCE

    @property
    def model(self) -> Model:
        """What its bundle is made of."""
        return Model(self.unet, self.decoder, "w8a8" if self.precision == "int8" else "fp16")


ROWS = {
    "diffusers-fp32-50": Row("diffusers", "sd15", "full", "fp32", 50),
    "diffusers-bf16-50": Row("diffusers", "sd15", "full", "bf16", 50),
    "genai-bf16-50": Row("genai", "sd15", "full", "bf16", 50),
    "genai-lcm-4": Row("genai", "sd15", "full", "bf16", 4, NO_GUIDANCE),
    "sdxs-1": Row("ours", "sdxs", "tiny", "bf16", 1, NO_GUIDANCE),
    "ours-table3-8": Row("ours", "table3", "half", "bf16", 8),
    "ours-table3-8-int8": Row("ours", "table3", "half", "int8", 8),
    "ours-cpu2s-8": Row("ours", "cpu2s", "half", "bf16", 8),
    "ours-cpu2s-8-int8": Row("ours", "cpu2s", "half", "int8", 8),
    "ours-cpu2s-8x1": Row("ours", "cpu2s", "half", "int8", 8, NO_GUIDANCE),
    "ours-cpu2s-4x1": Row("ours", "cpu2s", "half", "int8", 4, NO_GUIDANCE),
    "ours-cpu2s-1x1": Row("ours", "cpu2s", "tiny", "int8", 1, NO_GUIDANCE),
}
MISSING = {
    "cpu2s": "needs --cpu2s, which these make: snapfusion profile sd15 --out runs/profile-sd15; snapfusion evolve "
    "--price-only sd15 --table runs/profile-sd15/table.json --scores ROUND.json --budget-ms 490 --out runs/sd15",
    "genai": 'needs openvino-genai, which is not installed: pip install "snapfusion[genai]"',
}


def missing(row: Row, architectures: Mapping[str, Architecture]) -> str | None:
    """What a row cannot be drawn without."""
    if row.unet not in architectures:
        return MISSING[row.unet]
    if row.program == "genai" and not (find_spec("openvino_genai") and find_spec("openvino_tokenizers")):
        return MISSING["genai"]
    return None


def architectures_of(size: sd15.Size, cpu2s: Path | None) -> dict[str, Architecture]:
    """The UNets by name; `cpu2s` where a file says what it is."""
    widths = sd15.widths(size)
    small = Architecture.bk_tiny(widths)
    top = [block.name for block in small.blocks() if block.level == 0 and block.kind == "attention"]
    found = {"sd15": Architecture.sd15(widths), "table3": Architecture.table3(widths), "sdxs": small.without(*top)}
    if cpu2s is not None:
        found["cpu2s"] = Architecture.from_dict(read_json(cpu2s))
        if found["cpu2s"].widths != widths:
            raise ValueError(f"{cpu2s}: got widths {found['cpu2s'].widths}, expected {widths}, which --size {size} has")
    return found


def checkpoint(bundles: Bundles) -> Path:
    """A folder in diffusers' layout, in float16 as it is published."""
    folder = bundles.folder / "checkpoint"
    if not (folder / "model_index.json").is_file():  # written last
        save_checkpoint(sd15.checkpoint_of(bundles.size, seed=0), folder, torch.float16)
    return folder


def prepare(row: Row, bundles: Bundles) -> tuple[Path, list[str], Callable[[Clock], Draw]]:
    """A row's folder, the command of a process that draws it with its steps left out as {}, and what opens it here."""
    rival = [sys.executable, str(Path(rivals.__file__).resolve()), row.program]
    if row.program == "diffusers":
        folder = checkpoint(bundles).resolve()
        command = [*rival, str(folder), "{}", str(row.guidance), row.precision]
        return folder, command, lambda clock: rivals.diffusers(folder, row.guidance, row.precision, clock)
    folder = bundles(row.model, genai=row.program == "genai").resolve()
    if row.program == "genai":
        scheduler = "LCM" if row.guidance == NO_GUIDANCE else "DDIM"
        command = [*rival, str(folder), "{}", str(row.guidance), scheduler]
        return folder, command, lambda clock: rivals.genai(folder, row.guidance, scheduler, clock)
    flags = ["--bundle", str(folder), "--steps", "{}", "--guidance", str(row.guidance), "--seed", str(SEED), "--quiet"]
    command = [sys.executable, "-m", "snapfusion", "generate", PROMPT, *flags]
    return folder, command, lambda clock: ours(folder, row.guidance, clock)


def ours(folder: Path, guidance: float, clock: Clock) -> Draw:
    """A bundle, as `snapfusion generate` draws it."""
    bundle = read_bundle(folder)
    opened = open_networks(bundle, UNET_ROWS[guidance])
    networks = Networks(**{part: clock.timed(part, getattr(opened, part)) for part in PARTS})

    def draw(steps: int) -> bytes:
        (settings,) = settings_for(bundle, PROMPT, seed=SEED, steps=steps, guidance=guidance)
        return encode_png(generate(bundle, networks, settings), bundle, settings, f"snapfusion {__version__}")

    return draw


def warm(draw: Draw, clock: Clock, steps: int, runs: int) -> tuple[NDArray[np.float64], float, bool]:
    """Seconds of pictures and, in them, of each part `[runs, 1 + 3]`, those of one more step, and whether scaled."""

    def taken(steps: int) -> NDArray[np.float64]:
        clock.seconds = {}
        own = Clock()
        own.timed("picture", draw)(steps)
        return np.array([own.seconds["picture"], *(clock.seconds[part] for part in PARTS)])

    draw(1)
    if steps > 1 + SAMPLED:
        one = taken(1)
        step = (taken(1 + SAMPLED) - one) / SAMPLED
        once = [1 + PARTS.index("text_encoder"), 1 + PARTS.index("vae_decoder")]
        step[0] -= step[once].sum()  # they run once: where one took longer this time, no step did
        step[once] = 0
        if (whole := one + (steps - 1) * step)[0] > LONG:
            return whole[None], float(step[0]), True
    return np.array([taken(steps) for _ in range(runs)]), 0.0, False


def measure(row: Row, bundles: Bundles, runs: int) -> dict[str, Any]:
    """A row's figures."""
    folder, command, opened = prepare(row, bundles)
    clock = Clock()
    all_seconds, step, scaled = warm(opened(clock), clock, row.steps, runs)
    gc.collect()  # the networks go before another process comes
    picture, *parts = np.median(all_seconds, axis=0).tolist()
    drawn = 1 if scaled else row.steps
    cold, peak_bytes = time_a_process([word.replace("{}", str(drawn)) for word in command])
    costs = sd15.costs_of(bundles.size, bundles.architectures[row.unet], row.decoder)
    macs = macs_of_picture(costs, row.steps, guided=0 if row.guidance == NO_GUIDANCE else row.steps)
    peak = peak_speed(row.program == "diffusers", row.precision)
    figures = {
        "seconds": picture,
        "all": all_seconds[:, 0].tolist(),
        "scaled": scaled,
        "cold_seconds": cold + (row.steps - drawn) * step,
        "peak_bytes": peak_bytes,
        "part_seconds": dict(zip(PARTS, parts, strict=True)),
        "evaluation_seconds": parts[1] / row.steps,
        "macs": macs,
        "share_of_peak": 2 * macs / sum(parts) / peak,
        "host_share": float(np.median(1 - all_seconds[:, 1:].sum(axis=1) / all_seconds[:, 0])),
    }
    if row.program == "ours":
        figures |= {"bundle": read_bundle(folder).hash, **low_memory(folder, command, UNET_ROWS[row.guidance])}
    return figures


def low_memory(folder: Path, command: list[str], rows: tuple[int, ...]) -> dict[str, float]:
    """The most memory of `--low-memory` and of the largest network alone, beyond the bare program's, bytes."""
    _, bare = time_a_process([sys.executable, "-c", "import snapfusion.generate_command, snapfusion.runtimes.openvino"])
    _, low = time_a_process([*(word.replace("{}", "1") for word in command), "--low-memory"])
    largest = max(part["peak_bytes"] for part in footprints(folder, "openvino", rows).values())
    return {"low_memory_bytes": low - bare, "largest_part_bytes": largest, "low_memory_ratio": (low - bare) / largest}


def bars(rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, float, str, float]]:
    """What was asked of two cores, as far as its rows were measured: what, the figure, at most or at least, the bar."""

    def figure(name: str, key: str = "seconds") -> float:
        return rows[name][key]

    asked: list[tuple[str, Callable[[], float], str, float]] = [
        ("cpu2s UNet, int8, s", lambda: figure("ours-cpu2s-8x1", "evaluation_seconds"), "<=", 0.30),
        ("half decoder, int8, s", lambda: rows["ours-cpu2s-8x1"]["part_seconds"]["vae_decoder"], "<=", 0.5),
        ("genai-bf16-50 / ours-cpu2s-8-int8", lambda: figure("genai-bf16-50") / figure("ours-cpu2s-8-int8"), ">=", 16),
        ("ours-cpu2s-4x1, s", lambda: figure("ours-cpu2s-4x1"), "<=", 2.0),
        ("genai-bf16-50 / ours-cpu2s-4x1", lambda: figure("genai-bf16-50") / figure("ours-cpu2s-4x1"), ">=", 43),
        ("sdxs-1 / ours-cpu2s-1x1", lambda: figure("sdxs-1") / figure("ours-cpu2s-1x1"), ">=", 1),
        ("ours, host share, largest", lambda: max(of_ours("host_share")), "<=", 0.03),
        ("ours, --low-memory / largest part", lambda: max(of_ours("low_memory_ratio")), "<=", 1.2),
    ]

    def of_ours(key: str) -> list[float]:
        return [row[key] for name, row in rows.items() if name.startswith("ours")]

    found = []
    for name, value, sign, bar in asked:
        try:
            found.append((name, value(), sign, bar))
        except (KeyError, ValueError):  # a row is missing, or all of ours
            continue
    return found


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table."""
    print(f"{'':20}{'seconds':>9}{'spread':>16}{'cold':>8}{'peak GB':>9}{'UNet ms':>9}{'of peak':>9}{'host':>7}")
    for name, row in rows.items():
        spread = "scaled" if row["scaled"] else f"{min(row['all']):.2f}-{max(row['all']):.2f}"
        unet = 1000 * row["evaluation_seconds"]
        print(
            f"{name:20}{row['seconds']:>9.2f}{spread:>16}{row['cold_seconds']:>8.2f}{row['peak_bytes'] / 1e9:>9.2f}"
            f"{unet:>9.1f}{row['share_of_peak']:>9.0%}{row['host_share']:>7.1%}"
        )


def show_bars(found: list[tuple[str, float, str, float]]) -> None:
    """Print what was asked, and whether it was met."""
    for name, value, sign, bar in found:
        met = value <= bar if sign == "<=" else value >= bar
        print(f"{name:40}{value:>8.3g}  asked {sign} {bar:g}: {'met' if met else 'NOT MET'}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--cpu2s", type=Path, metavar="FILE", help="an architecture.json")
    parser.add_argument("--work", type=Path, default=Path("runs/two-seconds"), help="where bundles are kept")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", choices=get_args(sd15.Size), default="sd15")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    try:
        bundles = Bundles(options.work / options.size, options.size, architectures_of(options.size, options.cpu2s))
    except ValueError as error:
        print(f"two_seconds: {error}", file=sys.stderr)
        return 2
    reasons = {name: missing(ROWS[name], bundles.architectures) for name in options.rows}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name}: not run: {reason}", file=sys.stderr)
    protocol = {"prompt": PROMPT, "seed": SEED, "scheduler": "ddim", "size": sd15.side(options.size)}
    protocol |= {"model": options.size, "weights": "random", "runs": options.runs, "scaled_above_seconds": LONG}
    protocol |= {"computed_in": openvino.precision(), **machine()}
    rows: dict[str, dict[str, Any]] = {}
    found: list[tuple[str, float, str, float]] = []
    for name in [name for name, reason in reasons.items() if reason is None]:
        print(f"{name} ...", file=sys.stderr)
        rows[name] = measure(ROWS[name], bundles, options.runs)
        found = bars(rows) if options.size == "sd15" else []  # asked of that size alone
        named = [{"name": name, **asdict(ROWS[name]), **row} for name, row in rows.items()]
        not_run = {name: reason for name, reason in reasons.items() if reason is not None}
        write_record(options.json, protocol, named, not_run=not_run, bars=found)  # the next may find too little memory
    show(rows)
    show_bars(found)
    return 0 if rows else 2


if __name__ == "__main__":
    sys.exit(main())
