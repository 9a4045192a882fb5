"""How much signal and noise a latent holds at each step, and how x, noise and velocity turn into one another.

The paper's z_t = alpha_t x + sigma_t eps with alpha^2 + sigma^2 = 1 ("variance preserving", VP). The unit of t is
everywhere the checkpoint's integer step, 0 (nearly clean) to T-1 (nearly or wholly noise). The paper's t = i/N is
step round(T i/N) - 1, which diffusers calls trailing spacing; its t = 0 is the end, written t = -1 here.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Self, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from snapfusion.diffusion.array import A

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "v_prediction"]
TimestepSpacing = Literal["trailing", "leading", "linspace"]
Number = TypeVar("Number")
Level = tuple[Number, Number]  # (alpha, sigma)

LARGEST_SHIFT = 100.0
POSSIBLE_SHIFTS = f"a number above 0, at most {LARGEST_SHIFT:g}; 1 spreads the steps evenly"

# Settings of diffusers which would change the picture: refused, since they are not done here.
UNSUPPORTED = ("trained_betas", "thresholding", "clip_sample")


def add_noise(x: A, noise: A, alpha: float | A, sigma: float | A) -> A:
    """z = alpha x + sigma eps: the latent at a noise level. Alpha and sigma are numbers or broadcast."""
    return alpha * x + sigma * noise


def velocity(x: A, noise: A, alpha: float | A, sigma: float | A) -> A:
    """v = alpha eps - sigma x: what a v-prediction network learns (Eq. 6). Alpha and sigma are numbers or broadcast."""
    return alpha * noise - sigma * x


def x_and_noise(
    prediction: A, latent: A, alpha: float | A, sigma: float | A, prediction_type: PredictionType
) -> tuple[A, A]:
    """Returns the clean latent x and the noise eps which `prediction` sees in `latent` at (alpha, sigma)."""
    if prediction_type == "v_prediction":  # the brackets of Eq. 7
        return alpha * latent - sigma * prediction, sigma * latent + alpha * prediction
    return (latent - sigma * prediction) / alpha, prediction  # the fraction of Eq. 2


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a checkpoint and the steps to visit. Fields and defaults are diffusers' `DDIMScheduler`'s.

    Two fields are ours. `distilled_steps`: how many steps of DDIM the checkpoint was distilled for; 0 where it was not.
    `timestep_shift`: above 1, more of the steps are spent where there is more noise (see `shifted`); trailing only.

    Raises `ValueError` for an impossible value, and for epsilon prediction with zero terminal SNR: there the latent
    is nothing but noise, and predicting it says nothing about x.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    rescale_betas_zero_snr: bool = False
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    distilled_steps: int = 0
    timestep_shift: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            number = int | float if isinstance(field.default, float) else type(field.default)
            value = getattr(self, field.name)
            _check(isinstance(value, number), field.name, value, f"a value like {field.default!r}")
        _check_option("beta_schedule", self.beta_schedule, BetaSchedule)
        _check_option("prediction_type", self.prediction_type, PredictionType)
        _check_option("timestep_spacing", self.timestep_spacing, TimestepSpacing)
        steps, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
        _check(steps >= 2, "num_train_timesteps", steps, "at least 2")
        _check(0 < start <= end < 1, "beta_start, beta_end", (start, end), "0 < beta_start <= beta_end < 1")
        _check(0 <= self.steps_offset < steps, "steps_offset", self.steps_offset, f"0..{steps - 1}")
        _check(0 <= self.distilled_steps <= steps, "distilled_steps", self.distilled_steps, f"0..{steps}")
        _check(0 < self.timestep_shift <= LARGEST_SHIFT, "timestep_shift", self.timestep_shift, POSSIBLE_SHIFTS)
        _check(
            self.timestep_shift == 1 or self.timestep_spacing == "trailing",
            "timestep_spacing",
            self.timestep_spacing,
            "trailing, which a timestep_shift moves",
        )
        if self.rescale_betas_zero_snr:
            _check(
                self.prediction_type == "v_prediction",
                "prediction_type",
                self.prediction_type,
                "v_prediction, since rescale_betas_zero_snr leaves no signal at the last step",
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the fields of a diffusers `scheduler_config.json` as `DDIMScheduler.from_config` would.

        Raises `ValueError` for a config that is no such schedule, or sets what is not supported here.
        """
        if "beta_schedule" not in config:
            kind = config.get("_class_name", "no class name")
            raise ValueError(
                f"got a scheduler config without beta_schedule ({kind}), expected DDIM's or a relative's; "
                "save the checkpoint with diffusers' DDIMScheduler"
            )
        for name in UNSUPPORTED:
            _check(not config.get(name), name, config.get(name), "none: this setting is not supported")
        return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})

    def to_config(self) -> dict[str, Any]:
        """Returns a `scheduler_config.json` which diffusers' `DDIMScheduler` loads."""
        config = {"_class_name": "DDIMScheduler", "clip_sample": False, **asdict(self)}
        for name in ("distilled_steps", "timestep_shift"):  # diffusers warns of what it does not know
            if config[name] == getattr(Schedule, name):
                del config[name]
        return config

    def placed(self, shift: float) -> Self:
        """Returns the same with the steps moved by a `timestep_shift`, and with the trailing spacing that it wants.

        Raises `ValueError` for a shift that is none, and where the checkpoint was distilled for the steps that it has.
        """
        if self.distilled_steps and shift != self.timestep_shift:
            raise ValueError(
                f"got timestep shift {shift:g} for a checkpoint that was distilled for {self.distilled_steps} steps "
                f"with {self.timestep_shift:g}, expected none: it knows no others"
            )
        return replace(self, timestep_spacing="trailing", timestep_shift=shift)

    @cached_property
    def alphas(self) -> NDArray[np.float64]:
        """alpha_t for t = 0..T-1, `[T]`: the share of signal, sqrt(alpha_bar)."""
        return np.sqrt(self._alpha_bars)

    @cached_property
    def sigmas(self) -> NDArray[np.float64]:
        """sigma_t for t = 0..T-1, `[T]`: the share of noise, sqrt(1 - alpha_bar)."""
        return np.sqrt(1 - self._alpha_bars)

    @cached_property
    def _alpha_bars(self) -> NDArray[np.float64]:
        betas = _betas(self.beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end)
        alpha_bars = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
        if self.rescale_betas_zero_snr:
            alpha_bars = _rescale_zero_snr(alpha_bars)
        return alpha_bars.astype(np.float64)

    def level(self, t: int) -> Level[float]:
        """Returns (alpha, sigma) at step `t`, as Python numbers, which leave float32 latents float32.

        Any t below 0 is the end: no noise at all, or that of step 0 where `set_alpha_to_one` is off.
        """
        if t < 0 and self.set_alpha_to_one:
            return 1.0, 0.0
        t = max(t, 0)
        return float(self.alphas[t]), float(self.sigmas[t])

    def timesteps(self, steps: int) -> list[int]:
        """Returns the integer steps that DDIM visits, `steps` of them, descending, as diffusers chooses them.

        With a `timestep_shift` they are those of trailing spacing, moved; no two fall on one step.

        Raises `ValueError` unless 1 <= steps <= T.
        """
        total = self.num_train_timesteps
        if not 1 <= steps <= total:
            raise ValueError(f"got {steps} steps, expected 1..{total}; choose a number in that range")
        if self.timestep_shift != 1:
            times = shifted(np.arange(steps, 0, -1) / steps, self.timestep_shift)
            grid = _distinct((total * times).round().astype(np.int64) - 1)
        elif self.timestep_spacing == "trailing":
            # In floats, as diffusers, so that ties round alike; the error can add a step below 0, which is cut off.
            grid = np.arange(total, 0, -total / steps).round()[:steps] - 1
        elif self.timestep_spacing == "leading":
            grid = np.arange(steps)[::-1] * (total // steps)
            grid = grid + min(self.steps_offset, total - 1 - grid[0])  # the offset must not leave the schedule
        else:
            grid = np.linspace(0, total - 1, steps).round()[::-1]
        return [int(t) for t in grid]


def shifted(time: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """Times in 0..1, 1 being noise, moved towards it: s t / (1 + (s - 1) t) (arXiv 2403.03206, Eq. 23)."""
    return shift * time / (1 + (shift - 1) * time)


def _distinct(grid: NDArray[np.int64]) -> NDArray[np.int64]:
    """Descending steps of which no two are the same and none is below 0, as near to `grid` as a single pass brings."""
    index = np.arange(len(grid))
    lowered = np.minimum.accumulate(grid + index) - index  # each at least one below the one before
    return np.maximum(lowered, index[::-1])  # and with room for those that follow


# Up to alpha_bar all is rounded to float32, as in diffusers: these are the levels that a checkpoint was trained on.


def _betas(kind: BetaSchedule, total: int, start: float, end: float) -> NDArray[np.float32]:
    if kind == "linear":
        return np.linspace(start, end, total, dtype=np.float32)
    if kind == "scaled_linear":  # Stable Diffusion's
        return np.linspace(start**0.5, end**0.5, total, dtype=np.float32) ** 2
    # squaredcos_cap_v2 (Nichol and Dhariwal, arXiv 2102.09672, Eq. 17)
    alpha_bars = [math.cos((i / total + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(total + 1)]
    return np.array([min(1 - after / before, 0.999) for before, after in pairwise(alpha_bars)], np.float32)


def _rescale_zero_snr(alpha_bars: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keeps the first alpha and brings the last to zero (Lin et al., arXiv 2305.08891, Algorithm 1)."""
    alphas = np.sqrt(alpha_bars)
    first, last = alphas[0], alphas[-1]
    return ((alphas - last) * (first / (first - last))) ** 2


def check_timestep_shift(shift: float) -> None:
    """Raises `ValueError` for what cannot move steps."""
    if not 0 < shift <= LARGEST_SHIFT:
        raise ValueError(f"got timestep shift {shift:g}, expected {POSSIBLE_SHIFTS}")


def _check(true: bool, name: str, value: object, expected: str) -> None:
    if not true:
        raise ValueError(f"got {name} {value!r}, expected {expected}; correct the scheduler config")


def _check_option(name: str, value: str, options: Any) -> None:
    _check(value in get_args(options), name, value, "one of " + ", ".join(get_args(options)))
