"""A whole picture of a compressed bundle beside the base it was made from, in one run; where the factor comes from.

    python benchmarks/compare.py [--base models/stickers-base] [--ours BUNDLE] [--report run/evaluate/report.json]
        [--quality --data SET] [--json FILE]

Rows: the base in torch float32, in torch bfloat16 where the CPU has it, and in OpenVINO, with --steps steps; ours with
its own. The base's bundle for OpenVINO is made under --work on the first run (weights float16), and found there on the
next. All draw the same prompt and seed with the same guidance, in turns; medians of --runs after one round that does
not count. FID and alignment are those of the report's model with the same hash, and are left out where it has none;
--quality works them out first, by `snapfusion evaluate`.

    base-openvino / ours = steps x UNet x rest      rest: what does not shrink with the UNet (decoder, text, host)
    base-torch-fp32 / ours = engine x the above
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedded import Autocast
from record import write_record
from rivals import PROMPT, SEED, Clock
from snapfusion.autocast import has_bf16
from snapfusion.bundle import EMBEDDED, PARTS, Bundle, Networks, read_bundle
from snapfusion.checkpoint import hash_of, load_checkpoint
from snapfusion.generate import generate, open_networks, unet_rows
from snapfusion.json_file import read_json
from snapfusion.runtimes.torch import Network
from snapfusion.settings import Settings, settings_for
from snapfusion.stages.evaluate import stage as evaluate
from snapfusion.stages.evaluate.speed import machine
from snapfusion.stages.export import stage as export
from snapfusion.stages.export.modules import modules

BARS = {"base-openvino": 10, "base-torch-fp32": 25}
GOAL = 43  # the paper's, on a phone
HOST = 0.05
HEADS = {"seconds": 9, "spread": 14, "UNet ms": 9, "decoder": 9, "text": 7, "host": 7, "fid": 8, "alignment": 11}


@dataclass(frozen=True)
class Row:
    """A way to draw the picture."""

    sha256: str
    """Of what a report calls the model."""
    steps: int
    guidance: float
    guidance_stop: float
    draw: Callable[[], object]
    clock: Clock


def rows_of(base: Path, base_bundle: Bundle, ours: Bundle, steps: int) -> dict[str, Row]:
    """The rows by name, every network in memory."""
    defaults = ours.manifest.defaults
    parts = {part: Network(module) for part, module in modules(load_checkpoint(base)).items()}
    networks = {"base-torch-fp32": Networks(**parts)}
    if has_bf16(torch.device("cpu")):
        networks["base-torch-bf16"] = Networks(**{part: Autocast(network) for part, network in parts.items()})
    networks["base-openvino"] = open_networks(base_bundle, unet_rows(steps, defaults.guidance, 1.0))
    hashes = {name: base_bundle.hash if name == "base-openvino" else hash_of(base) for name in networks}
    (asked,) = settings_for(base_bundle, PROMPT, seed=SEED, steps=steps, guidance=defaults.guidance)
    found = {name: row(base_bundle, opened, asked, hashes[name]) for name, opened in networks.items()}
    (asked,) = settings_for(ours, PROMPT, seed=SEED)
    return {**found, f"ours-{defaults.steps}": row(ours, open_networks(ours), asked, ours.hash)}


def row(bundle: Bundle, networks: Networks, settings: Settings, sha256: str) -> Row:
    """One picture, with a clock in every network."""
    clock = Clock()
    timed = Networks(**{part: clock.timed(part, getattr(networks, part)) for part in PARTS})
    drawn = settings.steps, settings.guidance, settings.guidance_stop
    return Row(sha256, *drawn, lambda: generate(bundle, timed, settings), clock)


def measure(rows: Mapping[str, Row], runs: int) -> dict[str, dict[str, Any]]:
    """Seconds of each row's picture and of the networks in it, drawn in turns."""
    taken: dict[str, list[list[float]]] = {name: [] for name in rows}
    for _ in range(runs + 1):
        for name, one in rows.items():
            one.clock.seconds, whole = {}, Clock()
            whole.timed("picture", one.draw)()
            taken[name].append([whole.seconds["picture"], *(one.clock.seconds[part] for part in PARTS)])
    figures = {}
    for name, times in taken.items():
        picture, text, unet, decoder = np.median(times[1:], axis=0).tolist()
        figures[name] = {
            "seconds": picture,
            "all": [time[0] for time in times[1:]],
            "steps": rows[name].steps,
            "guidance": rows[name].guidance,
            "guidance_stop": rows[name].guidance_stop,
            "part_seconds": {"text_encoder": text, "unet": unet, "vae_decoder": decoder},
            "evaluation_seconds": unet / rows[name].steps,
            "host_share": float(np.median([1 - sum(time[1:]) / time[0] for time in times[1:]])),
            "sha256": rows[name].sha256,
        }
    return figures


def factors(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What base-torch-fp32 / ours is the product of."""
    fp32, base, ours = figures["base-torch-fp32"], figures["base-openvino"], list(figures.values())[-1]
    steps = base["steps"] / ours["steps"]
    unet = base["evaluation_seconds"] / ours["evaluation_seconds"]
    return {
        "engine": fp32["seconds"] / base["seconds"],
        "steps": steps,
        "UNet": unet,
        "rest": base["seconds"] / ours["seconds"] / steps / unet,
    }


def quality(report: Path, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """FID and alignment by row, where the report has its model: of the first protocol with an FID, or the first."""
    found: dict[str, dict[str, float]] = {}
    for model in read_json(report)["models"]:
        protocols = list(model["evaluation"]["figures"].values())
        best = next((known for known in protocols if "fid" in known), protocols[0])
        judged = {name: best[name]["value"] for name in ("fid", "alignment") if name in best}
        drawn = {"guidance_stop": 1.0, **model["evaluation"]}  # which reports did not say before it could be another
        found |= {
            name: judged
            for name, row in figures.items()
            if all(row[field] == drawn[field] for field in ("sha256", "steps", "guidance", "guidance_stop"))
            and name != "base-torch-bf16"  # whose pictures nobody has judged
        }
    return found


def show(figures: Mapping[str, Mapping[str, Any]], parts: Mapping[str, float]) -> None:
    """Print the table, the factors and the bars."""
    ours = list(figures.values())[-1]
    heads = "".join(f"{head:>{width}}" for head, width in HEADS.items())
    print(f"{'':17}{heads}")
    for name, one in figures.items():
        spread = f"{min(one['all']):.2f}-{max(one['all']):.2f}"
        text, decoder = (1000 * one["part_seconds"][part] for part in ("text_encoder", "vae_decoder"))
        judged = "".join(
            f"{one[key]:>{width}.3g}" if key in one else " " * width for key, width in (("fid", 8), ("alignment", 11))
        )
        print(
            f"{name:17}{one['seconds']:>9.3f}{spread:>14}{1000 * one['evaluation_seconds']:>9.1f}{decoder:>9.1f}"
            f"{text:>7.1f}{one['host_share']:>7.1%}{judged}"
        )
    whole = float(np.prod(list(parts.values())))
    print(
        f"base-torch-fp32 / ours = {' x '.join(f'{name} {value:.2f}' for name, value in parts.items())} = {whole:.1f}"
    )
    decoder = figures["base-openvino"]["part_seconds"]["vae_decoder"] / ours["part_seconds"]["vae_decoder"]
    share = ours["part_seconds"]["vae_decoder"] / ours["seconds"]
    print(f"the decoder is {decoder:.2f} times as fast as the base's, and {share:.0%} of our picture")
    for name, bar in BARS.items():
        ratio = figures[name]["seconds"] / ours["seconds"]
        print(f"{name} / ours = {ratio:.1f}  asked >= {bar}: {'met' if ratio >= bar else 'NOT MET'}")
    host = ours["host_share"]
    print(f"host, of ours = {host:.1%}  asked <= {HOST:.0%}: {'met' if host <= HOST else 'NOT MET'}")
    print(f"the paper's {GOAL}x: {'reached' if whole >= GOAL else f'a factor of {GOAL / whole:.1f} is missing'}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/stickers-base"), help="a checkpoint")
    parser.add_argument("--ours", type=Path, default=EMBEDDED, help="a bundle; by default the embedded one")
    parser.add_argument("--steps", type=int, default=50, help="of the base")
    parser.add_argument("--report", type=Path, help="report.json of `snapfusion evaluate`")
    parser.add_argument("--quality", action="store_true", help="evaluate base and ours first; needs --data")
    parser.add_argument("--data", type=Path, help="a built sticker set")
    parser.add_argument("--work", type=Path, default=Path("runs/compare"), help="where bundle and evaluation are kept")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quality and options.data is None:
        print("compare: got --quality and no --data, expected a built sticker set", file=sys.stderr)
        return 2
    config = export.Config(name="base", precision="fp16", steps=options.steps, prompts=(PROMPT,))
    base_bundle = read_bundle(export.run(config, options.base, options.work / "base").bundle)
    report = options.report
    if options.quality:
        guidance = read_bundle(options.ours).manifest.defaults.guidance  # what is timed
        asked = evaluate.Config(protocols=("headline", "cells"), guidance=guidance, curve=(), runs=1)
        evaluate.run(asked, [options.base, options.ours], evaluate.Sources(options.data), options.work / "evaluate")
        report = options.work / "evaluate" / evaluate.REPORT

    ours = read_bundle(options.ours)
    figures = measure(rows_of(options.base, base_bundle, ours, options.steps), options.runs)
    if report is not None:
        for name, judged in quality(report, figures).items():
            figures[name] |= judged
    parts = factors(figures)
    show(figures, parts)
    scheduler = f"ddim; ours {ours.manifest.defaults.scheduler}"
    protocol = {"prompt": PROMPT, "seed": SEED, "scheduler": scheduler, "runs": options.runs, **machine()}
    write_record(options.json, protocol, [{"name": name, **one} for name, one in figures.items()], factors=parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
