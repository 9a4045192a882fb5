"""Ways to a few steps at equal cost, side by side: the variants of the paper's Fig. 4 and 6, and none at all.

    python benchmarks/steps.py EVOLVED --base BASE --data SET --out RUN [--steps 8] [--timestep-shift 1] [--images 3840]
        [--guidances 2 4 8] [--protocol quick] [--only direct vanilla ...] [--json FILE]

Each variant is distilled from the evolved checkpoint in RUN/NAME and sees `--images` pictures, in all of its legs
together. Undistilled stand beside them DDIM, DPM-Solver++(2M) and Euler with as many steps, and the base in 50. Then
every row draws the prompts of the protocol with each guidance, in torch (bfloat16), marked by judge B.

direct        the paper's best: the base's 16 CFG-aware steps teach 8 to the evolved UNet's own 16
self          the evolved UNet's own 16 steps are the teacher      (Fig. 4, right)
base          the base's 16 steps by the vanilla loss are          (Fig. 4, right)
vanilla       direct without the CFG-aware loss                    (Fig. 6c)
cfg           direct with no other                                 (Fig. 6c)
progressive   the evolved UNet 64 -> 32 -> 16 -> 8                 (Fig. 6a)
range-1-8     direct with w from 1 to 8 in place of 2 to 14        (Fig. 6d)
gamma-0       direct without the original loss                     (Fig. 7b)

Run again, it goes on where it was stopped.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from record import write_record
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.progress import log_to_terminal
from snapfusion.stages.distill_steps.config import Config
from snapfusion.stages.distill_steps.plan import Leg, Plan, direct, progressive, run_plan
from snapfusion.stages.evaluate.config import Config as Marking
from snapfusion.stages.evaluate.config import Sources
from snapfusion.stages.evaluate.evaluation import evaluate
from snapfusion.stages.evaluate.model import Drawing, open_model

BASE_STEPS, BATCH = 50, 16
FIGURES = ("kid", "alignment", "recall_at_10", "style")
UNDISTILLED: tuple[Scheduler, ...] = ("ddim", "dpm++", "euler")


def variants(config: Config) -> dict[str, Plan]:
    """Plans by name, each of which sees `config.images` in all."""
    plans: dict[str, Plan] = {
        "direct": direct(config),
        "self": direct(config, "self"),
        "base": direct(config, "base"),
        "vanilla": direct(replace(config, p=0.0)),
        "cfg": direct(replace(config, p=1.0)),
        "range-1-8": direct(replace(config, guidance=(1.0, 8.0))),
        "gamma-0": direct(replace(config, gamma=0.0)),
    }
    found = {name: shared(plan, config.images) for name, plan in plans.items()}
    return {**found, "progressive": progressive(config, first=4 * config.steps)}


def shared(plan: Plan, images: int) -> Plan:
    """The plan with `images` dealt out to its legs alike."""
    return tuple(replace(leg, config=replace(leg.config, images=images // len(plan))) for leg in plan)


def joined(plans: dict[str, Plan]) -> Plan:
    """One plan of all: legs in a folder of their variant's name. Those that are alike are run once."""
    legs: list[Leg] = []
    for name, plan in plans.items():
        new = {leg.name: f"{name}/{leg.name}" for leg in plan}
        legs += [
            Leg(new[leg.name], new.get(leg.student, leg.student), new.get(leg.teacher, leg.teacher), leg.config)
            for leg in plan
        ]
    return tuple(legs)


@dataclass(frozen=True)
class Entry:
    """A checkpoint and how it draws."""

    name: str
    folder: Path
    steps: int
    scheduler: Scheduler = "ddim"
    timestep_shift: float | None = None


def judged(entry: Entry, marking: Marking, data: Path, out: Path) -> Iterator[dict[str, Any]]:
    """A row for each guidance."""
    start = time.perf_counter()
    how = Drawing(entry.steps, entry.scheduler, entry.timestep_shift, batch=BATCH, bf16=True)
    model = open_model(entry.folder, how)
    (protocol,) = marking.protocols
    found = evaluate(marking, model, Sources(data), out / "judged" / f"{protocol} {entry.name}".replace(" ", "-"))
    seconds = time.perf_counter() - start
    for guidance, figures in {f"{found.guidance:g}": found.figures[protocol], **found.curve}.items():
        said = {name: [figures[name].value, figures[name].low, figures[name].high] for name in FIGURES}
        yield {"name": entry.name, "seconds": seconds, "guidance": float(guidance), "drawing": found.drawing, **said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evolved", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a built sticker set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subset", choices=("core", "full"), default="core", help="what the base was trained on")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--timestep-shift", type=float, default=1.0, help="where steps are, distilled or not")
    parser.add_argument("--images", type=int, default=3840)
    parser.add_argument("--guidances", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--protocol", choices=("quick", "cells"), default="quick")
    parser.add_argument("--only", nargs="+", help="variants by name; by default all of them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    log_to_terminal()

    steps, shift, out = options.steps, options.timestep_shift, options.out
    plans = variants(Config(options.subset, options.images, steps=steps, timestep_shift=shift))
    if unknown := set(options.only or ()) - plans.keys():
        parser.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(plans)}")
    plans = {name: plan for name, plan in plans.items() if name in (options.only or plans)}
    results = run_plan(joined(plans), {"base": options.base, "evolved": options.evolved}, options.data, out)

    entries = [Entry(f"base {BASE_STEPS} steps", options.base, BASE_STEPS)]
    entries += [
        Entry(f"undistilled {scheduler}", options.evolved, steps, scheduler, shift) for scheduler in UNDISTILLED
    ]
    entries += [Entry(name, results[f"{name}/{plan[-1].name}"].checkpoint, steps) for name, plan in plans.items()]
    first, *others = options.guidances
    marking = Marking((options.protocol,), options.subset, guidance=first, curve=tuple(others), curve_pictures=1000)
    rows: list[dict[str, Any]] = []
    print(f"{'':20}{'guidance':>9}" + "".join(f"{name:>26}" for name in FIGURES))
    for entry in entries:
        for row in judged(entry, marking, options.data, out):
            shown = (f"{row[name][0]:.4f} [{row[name][1]:.4f}, {row[name][2]:.4f}]" for name in FIGURES)
            print(f"{row['name']:20}{row['guidance']:>9g}" + "".join(f"{text:>26}" for text in shown), flush=True)
            rows.append(row)
    protocol = {"images": options.images, "judged": options.protocol, "steps": steps, "timestep_shift": shift}
    write_record(options.json, protocol, rows)


if __name__ == "__main__":
    main()
