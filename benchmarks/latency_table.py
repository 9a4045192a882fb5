"""How well a table of blocks predicts what whole UNets take: predicted against measured, for random architectures.

    python benchmarks/latency_table.py [--model models/stickers-base | --model sd15] [--architectures 12] [--json FILE]

Every method times the pieces of the UNet; then each architecture's UNet runs in turns with the full one, so that a
machine that is slower for a while is slower for both: measured = (its time / the full one's) x the full one's when the
table was made. Weights are random, which changes no time. Rows: method x calibration; the bars are a median error of
10% and a rank correlation (Spearman) of 0.95.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from record import write_record
from snapfusion.checkpoint import load_checkpoint
from snapfusion.model.architecture import Architecture
from snapfusion.model.block import Position
from snapfusion.stages.profile.engines import Runtime, device, engine
from snapfusion.stages.profile.measure import Calibration, Method, Stopwatch, measure_pieces, tables_of
from snapfusion.stages.profile.networks import Networks, unet_of, unet_sketch
from snapfusion.stages.profile.timing import Timing, rounds, timing
from snapfusion.table import Table


def main() -> None:
    options = parse()
    networks = Networks.sd15() if options.model == "sd15" else Networks.of(load_checkpoint(Path(options.model)))
    stopwatch = Stopwatch(engine(options.runtime, options.threads), (options.batch,), options.seconds)
    wholes = {"unet": stopwatch.alone(unet_sketch(networks.unet, networks.length))}
    tables: dict[str, Table] = {}
    seconds: dict[str, float] = {}
    for method in options.methods:
        start = time.perf_counter()
        found = measure_pieces(networks.unet, networks.length, stopwatch, method)
        seconds[method] = time.perf_counter() - start
        for calibration in get_args(Calibration):
            made = tables_of(networks.unet, stopwatch, wholes, found, calibration)[options.batch]
            tables[f"{method}, {calibration}"] = made

    chosen = architectures(networks.unet.architecture, options.architectures, options.seed)
    whole = wholes["unet"].timings[options.batch].median
    measured = measure_architectures(networks, stopwatch, chosen, whole)
    predicted = {name: [table.price(one).milliseconds for one in chosen] for name, table in tables.items()}
    rows = [
        {"name": name, "seconds": seconds[name.split(",")[0]], **agreement(ms, [one.median for one in measured])}
        for name, ms in predicted.items()
    ]
    show(chosen, measured, predicted, rows, whole)
    first = next(iter(tables.values()))
    protocol = {**vars(options), "json": None, "device": device(), "engine": first.engine, "whole_ms": whole}
    protocol |= {"precision": first.precision, "threads": first.threads}
    found = [
        {"architecture": one.to_dict(), "ms": taken.median, "spread": taken.spread}
        | {"predicted": {name: ms[number] for name, ms in predicted.items()}}
        for number, (one, taken) in enumerate(zip(chosen, measured, strict=True))
    ]
    write_record(options.json, protocol, rows, architectures=found)


def architectures(ancestor: Architecture, count: int, seed: int) -> list[Architecture]:
    """Legal ones, all different: blocks removed and copied, skips given up in pairs, now and then no deepest level."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        one = without_deepest(ancestor, rng) if rng.random() < 0.25 else ancestor
        for _ in range(rng.randint(1, 16)):
            one = changed(one, rng)
        if one not in (ancestor, *found):
            found.append(one)
    return found


def changed(architecture: Architecture, rng: random.Random) -> Architecture:
    """One random action further; the same architecture where that is not legal."""
    action = rng.choices(("remove", "copy", "pair"), (6, 3, 3))[0]
    try:
        if action == "pair":
            down = rng.choice([slot for slot in architecture.slots() if slot.stage.startswith("down")])
            ups = [slot for slot in architecture.slots() if slot.stage.startswith("up") and slot.level == down.level]
            return architecture.without_pair(down.resnet, rng.choice(ups).resnet)
        name = rng.choice([block.name for block in architecture.blocks() if block.removable])
        return architecture.without(name) if action == "remove" else architecture.with_copies(name)
    except ValueError:
        return architecture


def without_deepest(architecture: Architecture, rng: random.Random) -> Architecture:
    """A level less, with its middle or without; where the level above is narrower, also without what it was fed to."""
    if len(architecture.down) < 2:
        return architecture
    mid, down, (first_up, *up), *rest = architecture.mid, architecture.down[:-1], *architecture.up[1:]
    if architecture.widths[len(down) - 1] == architecture.widths[-1]:
        kept = mid if rng.random() < 0.5 else (Position(0, 0),) * 2
        return replace(architecture, down=down, mid=kept, up=architecture.up[1:])
    last_down, first_up = (replace(one, resnets=0, skip=False) for one in (down[-1][-1], first_up))
    down = (*down[:-1], (*down[-1][:-1], last_down))
    return replace(architecture, down=down, mid=(Position(0, 0),) * 2, up=((first_up, *up), *rest))


def measure_architectures(
    networks: Networks, stopwatch: Stopwatch, chosen: Sequence[Architecture], whole: float
) -> list[Timing]:
    """Milliseconds of whole UNets, relative to the full one's in the same minute, times `whole`."""
    (batch,) = stopwatch.batches
    full = stopwatch.open(unet_sketch(networks.unet, networks.length)).runs[batch]
    found = []
    for architecture in chosen:
        sketch = unet_sketch(unet_of(networks.unet, architecture), networks.length)
        both = rounds([full, stopwatch.open(sketch).runs[batch]], 2 * stopwatch.seconds)
        ratio = timing(both[:, 1] / both[:, 0])
        found.append(Timing(ratio.median * whole, ratio.spread * whole))
    return found


def agreement(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Median and largest relative error, and Spearman's rank correlation."""
    errors = [abs(one / other - 1) for one, other in zip(predicted, measured, strict=True)]
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, measured)]
    return {
        "median_error": median(errors),
        "largest_error": max(errors),
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
    }


def show(
    chosen: Sequence[Architecture],
    measured: Sequence[Timing],
    predicted: dict[str, list[float]],
    rows: Sequence[dict[str, Any]],
    whole: float,
) -> None:
    best = min(rows, key=lambda row: row["median_error"])["name"]
    print(f"the full UNet: {whole:.2f} ms; predictions below: {best}")
    print(f"{'levels':>6}{'blocks':>8}{'measured ms':>13}{'spread':>9}{'predicted':>11}{'error':>8}")
    for number, (one, taken) in enumerate(zip(chosen, measured, strict=True)):
        guess = predicted[best][number]
        start = f"{len(one.down):>6}{len(one.blocks()):>8}{taken.median:>13.2f}{taken.spread:>9.2f}"
        print(f"{start}{guess:>11.2f}{guess / taken.median - 1:>8.1%}")
    print(f"\n{'method, calibration':24}{'median error':>14}{'largest':>10}{'Spearman':>10}{'minutes':>9}")
    for row in rows:
        errors = f"{row['median_error']:>14.1%}{row['largest_error']:>10.1%}"
        print(f"{row['name']:24}{errors}{row['spearman']:>10.3f}{row['seconds'] / 60:>9.1f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/stickers-base", help="a checkpoint's folder, or sd15")
    parser.add_argument("--architectures", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=get_args(Method), default=get_args(Method))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runtime", choices=get_args(Runtime), default="openvino")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each piece, at the least")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
