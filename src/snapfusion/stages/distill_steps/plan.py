"""The paper's pipeline (section 4.3) as a value: which checkpoint is distilled into which, leg after leg.

base 32 -> 16                               leg "base-16"
evolved 32 -> 16                            leg "evolved-16"
base-16 teaches 8 steps to evolved-16       leg "evolved-8"
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from snapfusion.stages.distill_steps.config import Config
from snapfusion.stages.distill_steps.stage import Result, run

Teacher = Literal["self", "base", "cfg-base"]


@dataclass(frozen=True)
class Leg:
    """One distillation. Student and teacher are names: of a checkpoint that is given, or of an earlier leg."""

    name: str
    student: str
    teacher: str
    config: Config


Plan = tuple[Leg, ...]


def direct(config: Config, teacher: Teacher = "cfg-base") -> Plan:
    """`config.steps` steps of the evolved UNet by two halvings, 32 -> 16 -> 8; every leg sees `config.images`.

    Teacher of the last leg (Fig. 4, right): "self", the evolved UNet's own 16 steps; "base", the base's 16 steps by the
    vanilla loss; "cfg-base", the base's 16 steps by the mixed loss, which the paper found best.
    """
    half = replace(config, steps=2 * config.steps)
    own = Leg(f"evolved-{half.steps}", "evolved", "evolved", half)
    if teacher == "self":
        return own, Leg(f"evolved-{config.steps}", own.name, own.name, config)
    vanilla = teacher == "base"
    name = f"base-vanilla-{half.steps}" if vanilla else f"base-{half.steps}"
    other = Leg(name, "base", "base", replace(half, p=0.0) if vanilla else half)
    return other, own, Leg(f"evolved-{config.steps}", own.name, other.name, config)


def progressive(config: Config, checkpoint: str = "evolved", first: int = 32) -> Plan:
    """`config.steps` steps of one checkpoint, each leg taught by the one before: 64 -> 32 -> 16 -> 8 (Fig. 6a).

    `first` is the steps of the first leg. `config.images` are shared equally by the legs, so that all of them together
    see what one direct leg sees. Raises `ValueError` unless `first` comes down to `config.steps` by halving.
    """
    steps = [first]
    while steps[-1] > config.steps:
        steps.append(steps[-1] // 2)
    if steps[-1] != config.steps or any(a != 2 * b for a, b in pairwise(steps)):
        raise ValueError(f"got {first} steps to come down to {config.steps}, expected a number like {4 * config.steps}")
    names = [checkpoint, *(f"{checkpoint}-progressive-{count}" for count in steps)]
    share = replace(config, images=config.images // len(steps))
    return tuple(
        Leg(name, before, before, replace(share, steps=count))
        for (before, name), count in zip(pairwise(names), steps, strict=True)
    )


def run_plan(plan: Sequence[Leg], checkpoints: Mapping[str, Path], data: Path, out: Path) -> dict[str, Result]:
    """Run the legs, each in its folder below `out`, and return what each came to; to resume, call it again.

    `checkpoints` are those that the legs name: "base", "evolved". A leg's `max_seconds` count from the start of the
    first. Raises what `stage.run` raises, and `ValueError` for a name that is neither a checkpoint's nor a leg's.
    """
    known, done, results, started = dict(checkpoints), {}, {}, time.monotonic()
    for leg in plan:
        for name in (leg.student, leg.teacher):
            if name not in known:
                raise ValueError(f"got {name} in leg {leg.name}, expected one of {', '.join(known)}")
        what = known[leg.student], known[leg.teacher], leg.config
        if what not in done:  # without evolution the base's leg and the evolved UNet's are one
            left = replace(leg.config, max_seconds=max(leg.config.max_seconds - (time.monotonic() - started), 0.0))
            done[what] = run(left, *what[:2], data, out / leg.name, out / "cache")
        results[leg.name] = done[what]
        known[leg.name] = done[what].checkpoint
    return results
