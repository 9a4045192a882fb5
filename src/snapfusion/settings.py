"""What a person asks for, as one checked value per picture. Their mistakes end here, each as one `ValueError`."""

import math
import secrets
from dataclasses import dataclass
from typing import Any, cast, get_args

from snapfusion.bundle import Bundle
from snapfusion.diffusion.guidance import POSSIBLE_STOPS
from snapfusion.diffusion.sampler import Scheduler

MOST_PICTURES = 64
LARGEST_GUIDANCE = 50
SEEDS = 1 << 64


@dataclass(frozen=True)
class Settings:
    """All that one picture depends on, the bundle apart."""

    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    scheduler: Scheduler
    guidance_stop: float = 1.0
    """Share of the steps that are guided, the first ones."""


def settings_for(
    bundle: Bundle,
    prompt: str,
    *,
    seed: int,
    negative: str = "",
    steps: int | None = None,
    guidance: float | None = None,
    n: int = 1,
    scheduler: str | None = None,
    guidance_stop: float | None = None,
    size: int | None = None,
) -> list[Settings]:
    """The settings of `n` pictures, whose seeds are `seed`, `seed + 1`, ...; None is the bundle's own default."""
    defaults, longest = bundle.manifest.defaults, bundle.schedule.num_train_timesteps
    steps = defaults.steps if steps is None else steps
    guidance = defaults.guidance if guidance is None else guidance
    scheduler = defaults.scheduler if scheduler is None else scheduler
    guidance_stop = defaults.guidance_stop if guidance_stop is None else guidance_stop
    for text in (prompt, negative):
        _check(text == text.encode(errors="ignore").decode(), "a prompt that is no text", "characters in UTF-8")
    _check(bool(prompt.strip()), "a blank prompt", "some words, such as 'a red fox'")
    _check(_whole(steps) and 1 <= steps <= longest, f"{steps!r} steps", f"1 to {longest}")
    _check(_whole(n) and 1 <= n <= MOST_PICTURES, f"n {n!r}", f"1 to {MOST_PICTURES} pictures")
    _check(
        isinstance(guidance, int | float) and math.isfinite(guidance) and 0 <= guidance <= LARGEST_GUIDANCE,
        f"guidance {guidance!r}",
        f"a number from 0 to {LARGEST_GUIDANCE}",
    )
    _check(
        guidance != 1 or not negative.strip(),
        f"a negative prompt and guidance {guidance:g}",
        "another guidance, such as 4: at 1 nothing is kept away from",
    )
    _check(
        isinstance(guidance_stop, int | float) and 0 < guidance_stop <= 1,
        f"guidance stop {guidance_stop!r}",
        f"{POSSIBLE_STOPS}; guidance 1 is no guidance",
    )
    _check(
        _whole(seed) and 0 <= seed <= SEEDS - n, f"seed {seed!r}", "a whole number from 0 to 2^64-1, the last one's too"
    )
    _check(scheduler in get_args(Scheduler), f"scheduler {scheduler!r}", ", ".join(get_args(Scheduler)))
    _check(size in (None, bundle.image_size), f"size {size!r}", f"{bundle.image_size}: it is all this bundle draws")
    known = cast(Scheduler, scheduler)
    shared = steps, float(guidance), known, float(guidance_stop)
    return [Settings(prompt, negative, seed + k, *shared) for k in range(n)]


def new_seed() -> int:
    """A seed that nobody chose, short enough to be typed again."""
    return secrets.randbelow(1 << 32)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(true: bool, got: str, expected: str) -> None:
    if not true:
        raise ValueError(f"got {got}, expected {expected}")
