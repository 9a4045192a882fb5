"""How steps are distilled, and how a checkpoint is turned to velocity: what a person may choose."""

import math
from dataclasses import dataclass
from typing import Literal

from snapfusion.diffusion.schedule import check_timestep_shift
from snapfusion.fit import FitConfig
from snapfusion.latents import Shares


@dataclass(frozen=True)
class Training:
    """What every run of this stage has: how long, on what, how fast. None of it is in the paper but weight decay."""

    subset: Literal["core", "full"] = "core"
    """Pictures to train on."""
    images: int = 96_000
    """Pictures seen in all."""
    batch: int = 32
    lr: float = 1e-4
    warmup: int = 100
    """Steps over which the learning rate rises."""
    decay: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    ema: float = 0.999
    dropout: float = 0.1
    """Share of the pictures that lose their caption, else the unconditional branch decays."""
    recoloured: float = 0.12
    """Share that are copies with a turned hue, and say so."""
    mirrored: float = 0.5
    """Share that are mirrored, and do not say so."""
    variants: int = 8
    """Different sentences for a picture."""
    accumulate: int = 1
    """Parts in which a batch is computed, to save memory."""
    gradient_checkpointing: bool = False
    """Compute activations twice, to save memory."""
    precision: Literal["bf16", "no"] = "bf16"
    """Of the networks; formulas and weights are float32."""
    tracker: str | None = "tensorboard"
    """What draws the curves: any that accelerate knows by name."""
    observe_steps: int = 500
    """Steps between two looks at the losses on held-out pictures."""
    held_out_batches: int = 4
    """Batches of held-out pictures that such a look is the mean of."""
    seed: int = 0
    max_seconds: float = math.inf
    """Stop cleanly after this long; the same command goes on."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "variants", "observe_steps", "held_out_batches"):
            if (got := getattr(self, name)) < 1:
                raise ValueError(f"got --{name.replace('_', '-')} {got}, expected at least 1")
        _ = self.shares  # refuses what is none
        if self.images < self.batch:
            raise ValueError(f"got --images {self.images}, expected at least a batch of {self.batch}")

    @property
    def shares(self) -> Shares:
        """How many of the examples are changed, and how."""
        return Shares(self.dropout, self.recoloured, self.mirrored)

    @property
    def steps_of_training(self) -> int:
        """How often the weights are moved."""
        return self.images // self.batch

    def fit_config(self, name: str) -> FitConfig:
        """The same for `fit`."""
        return FitConfig(
            steps=self.steps_of_training,
            batch=self.batch,
            lr=self.lr,
            warmup=self.warmup,
            decay=round(self.decay * self.steps_of_training),
            ema=self.ema,
            accumulate=self.accumulate,
            gradient_checkpointing=self.gradient_checkpointing,
            precision=self.precision,
            tracker=self.tracker,
            max_seconds=self.max_seconds,
            name=name,
        )


@dataclass(frozen=True)
class Config(Training):
    """One distillation: p, guidance and gamma are the paper's choice (Fig. 7)."""

    steps: int = 8
    """Steps of the student; the teacher takes twice as many."""
    p: float = 0.1
    """Share of the batches with the CFG-aware loss: 0 is vanilla distillation, 1 the CFG-aware loss alone."""
    guidance: tuple[float, float] = (2.0, 14.0)
    """The range that w is drawn from, for each picture anew."""
    gamma: float = 0.2
    """Weight of the original loss, relative to the distillation loss; 0 leaves it out."""
    timestep_shift: float = 1.0
    """Where the student's steps are: above 1, more of them where there is more noise. The paper's are evenly spread."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.guidance
        for name, got, right, expected in (
            ("steps", self.steps, self.steps >= 1, "at least 1"),
            ("p", self.p, 0 <= self.p <= 1, "a share from 0 to 1"),
            ("guidance", self.guidance, 0 <= low <= high < math.inf, "a range such as 2 14"),
            ("gamma", self.gamma, 0 <= self.gamma < math.inf, "a weight from 0"),
        ):
            if not right:
                raise ValueError(f"got {name} {got}, expected {expected}")
        check_timestep_shift(self.timestep_shift)


@dataclass(frozen=True)
class VelocityConfig(Training):
    """Turning a checkpoint from noise to velocity prediction."""

    images: int = 64_000
    target: Literal["checkpoint", "data"] = "checkpoint"
    """Learn the velocity in the checkpoint's own prediction, or that of the data."""
    pictures: int = 16
    """Held-out prompts that are drawn before and after."""
    picture_steps: int = 25
    picture_guidance: float = 4.0
