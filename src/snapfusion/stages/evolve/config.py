"""What a person may ask of an evolution."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from snapfusion.denoising import check_shift
from snapfusion.fit import FitConfig
from snapfusion.latents import Shares
from snapfusion.stages.evolve.finetune import Distillation
from snapfusion.stages.evolve.robust import Schooling, Skip
from snapfusion.stages.evolve.search import Limits
from snapfusion.stages.evolve.trial import PROXY

FREE = ("max_seconds", "accumulate", "gradient_checkpointing", "draw_batch", "tracker")
"""What may change from one call to the next."""


@dataclass(frozen=True)
class Config:
    """What to reach, and how; the defaults are what two CPU cores can do in a night."""

    budget_ms: tuple[float, ...] = ()
    """Milliseconds of the UNet by the table; several give a family."""
    budget_mb: tuple[float, ...] = ()
    """Megabytes of the UNet by the table, in place of milliseconds."""
    objective: Literal["latency", "size"] | None = None
    """What a block's quality is divided by; None for what the budget is in."""
    cuts: int = 3
    """Rounds in which blocks go, for each budget."""
    copy_rounds: int = 1
    """Rounds in which blocks are copied if there is room, for each budget."""
    copies: int = 2
    """Blocks that such a round copies at most."""
    room: float = 0.1
    """Share of the budget that the last cut leaves free for them."""
    copies_start: Literal["identity", "same"] = "identity"
    """Whether a copy begins as the identity or with its original's weights."""
    score: Literal["drawing", "trajectory", "denoising", "output"] = "drawing"
    """What a block's quality is: alignment of pictures drawn without it, distance of latents drawn without it from
    those of the whole network, or a loss on real latents."""
    latents: int = 512
    """Held-out latents that such a loss is the mean of."""
    score_shift: float | None = None
    """As `noise_shift`, for such a loss alone: the noisier, the more it says of what a thing is; None for the same."""
    prompts: int = PROXY.prompts
    """Pictures that are drawn of each network."""
    steps: int = PROXY.steps
    """Steps of DDIM to each of them."""
    guidance: float = 4.0
    """Of the pictures that are judged: what the base likes."""
    skip: float = 0.1
    """Probability with which robust training leaves a block out of a step (Eq. 5)."""
    skip_rise: int = 500
    """Steps over which that probability rises from zero."""
    distil: float = 0.0
    """Weight of the base's output in robust training."""
    robust_images: int = 100_000
    """Pictures of the first round's training."""
    round_images: int = 20_000
    """Pictures of every other round's training."""
    finetune_images: int = 200_000
    """Pictures of a budget's fine-tuning."""
    distil_output: float = 1.0
    """Weight of the base's output in fine-tuning."""
    distil_features: float = 0.1
    """Weight of the stages' features in fine-tuning."""
    batch: int = 32
    lr: float = 2e-4
    finetune_lr: float = 4e-4
    warmup: int = 100
    ema: float = 0.999
    dropout: float = 0.1
    """Share of the pictures that are trained with the empty prompt."""
    recoloured: float = 0.12
    """Share that are copies with a turned hue, and say so."""
    mirrored: float = 0.5
    """Share that are mirrored, and do not say so."""
    noise_shift: float = 1.0
    """Above 1, noisy levels are drawn more often than others (see diffusion.schedule.shifted)."""
    variants: int = 8
    """Different sentences for a picture."""
    subset: Literal["core", "full"] = "core"
    """Pictures that are trained on, the judge too, and whose prompts are drawn."""
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    accumulate: int = 1
    """Parts in which each process computes its share of a batch, to save memory."""
    gradient_checkpointing: bool = False
    """Compute activations twice, to save memory."""
    tracker: str | None = None
    """What draws the curves: any that accelerate knows by name."""
    draw_batch: int = 16
    """Pictures that are drawn together."""
    seed: int = 0
    max_seconds: float = math.inf
    """Stop cleanly after this long; the same command goes on."""

    def __post_init__(self) -> None:
        check_shift(self.noise_shift)
        _ = self.shares  # refuses what is none
        for name in ("cuts", "latents", "prompts", "steps", "batch", "draw_batch", "accumulate", "variants"):
            if (got := getattr(self, name)) < 1:
                raise ValueError(f"got --{name.replace('_', '-')} {got}, expected at least 1")
        if self.skip_rise < 0:
            raise ValueError(f"got --skip-rise {self.skip_rise}, expected 0 or more steps")
        for name in ("robust_images", "round_images", "finetune_images"):
            if 0 < (got := getattr(self, name)) < self.batch:
                flag = name.replace("_", "-")
                raise ValueError(f"got --{flag} {got}, expected 0 or at least a batch of {self.batch}")
        if self.score_shift is not None:
            check_shift(self.score_shift)
        if not 0 <= self.room < 1:
            raise ValueError(f"got room {self.room}, expected a share of the budget, from 0 to less than 1")

    @property
    def shares(self) -> Shares:
        """How many of the examples are changed, and how."""
        return Shares(self.dropout, self.recoloured, self.mirrored)

    @property
    def limits(self) -> Limits:
        """How often each budget may cut and copy."""
        return Limits(self.cuts, self.copy_rounds, self.copies, self.room if self.copy_rounds else 0.0)

    @property
    def distillation(self) -> Distillation:
        """How much the base counts in fine-tuning."""
        return Distillation(self.distil_output, self.distil_features)

    def schooling(self, max_seconds: float) -> Schooling:
        """How the rounds train."""
        first, other = self.robust_images // self.batch, self.round_images // self.batch
        return Schooling(first, other, Skip(self.skip, self.skip_rise, self.distil), self._fit(max_seconds))

    def finetuning(self, max_seconds: float) -> FitConfig:
        """How each budget's network is trained at the end; the learning rate falls over the second half."""
        fit, steps = self._fit(max_seconds), self.finetune_images // self.batch
        return replace(fit, steps=steps, lr=self.finetune_lr, decay=steps // 2, skips_blocks=False, name="fine-tuning")

    def _fit(self, max_seconds: float) -> FitConfig:
        return FitConfig(
            steps=0,
            batch=self.batch,
            lr=self.lr,
            warmup=self.warmup,
            ema=self.ema,
            accumulate=self.accumulate,
            gradient_checkpointing=self.gradient_checkpointing,
            skips_blocks=True,
            precision=self.precision,
            tracker=self.tracker,
            max_seconds=max_seconds,
        )
