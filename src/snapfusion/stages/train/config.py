"""How the stickers base is trained, as a person chooses it, and what a run comes to; both as its folder keeps them."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from snapfusion.denoising import check_shift
from snapfusion.json_file import read_json, write_json
from snapfusion.latents import Shares
from snapfusion.processes import rank

FREE = ("images", "patience", "keep", "observe_steps", "accumulate", "gradient_checkpointing", "tracker", "max_seconds")
"""What may change in a run's config from one call to the next."""


@dataclass(frozen=True)
class Config:
    """How the stickers base is trained; the defaults are what two CPU cores can do."""

    subset: Literal["core", "full"] = "core"
    """Pictures of the UNet. The autoencoder always sees all of `train`."""
    widths: tuple[int, ...] | None = None
    """Channels of the UNet's levels. With `init`, its UNet is widened to them and trained on (see model/widen.py)."""
    images: int = 1_400_000
    """Pictures the UNet sees in all."""
    batch: int = 32
    lr: float = 5e-4
    warmup: int = 300
    """Steps over which the learning rate rises."""
    decay: float = 0.1
    """Share of the UNet's steps, at the end, over which the learning rate falls to zero."""
    ema: float = 0.9995
    dropout: float = 0.1
    """Share of the pictures that are trained with the empty prompt."""
    snr_gamma: float | None = None
    """Where to cut min-SNR weights, 5 as a rule. By default all noise levels count alike: see docs/log.md."""
    noise_shift: float = 1.0
    """Above 1, noisy levels are drawn more often than others (see diffusion.schedule.shifted)."""
    recoloured: float = 0.12
    """Share that are copies with a turned hue, and say so."""
    mirrored: float = 0.5
    """Share that are mirrored, and do not say so."""
    variants: int = 8
    """Different sentences for a picture."""
    length: int = 32
    """Tokens of a prompt."""
    autoencoder: Literal["keep", "train", "decoder"] = "keep"
    """With `init`: keep its autoencoder, train it on, or its decoder alone, which leaves latents and UNet valid."""
    autoencoder_images: int = 40_000
    autoencoder_batch: int = 8
    autoencoder_lr: float = 1e-3
    kl_weight: float = 1e-3
    lpips_weight: float = 0.5
    observe_steps: int = 1000
    """Steps between two sheets and two looks at the held-out loss."""
    patience: int = 8
    """Looks without a better held-out loss after which the UNet's training stops."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the checkpoint: those of the lowest held-out loss, or the last. The last may draw what they
    have seen better, and what they have not no worse, at a higher loss: look at both."""
    seed: int = 0
    accumulate: int = 1
    """Parts in which each process computes its share of a batch, to save memory."""
    gradient_checkpointing: bool = False
    """Compute the UNet's activations twice, to save memory."""
    tracker: str | None = "tensorboard"
    """What draws the curves: any that accelerate knows by name."""
    max_seconds: float = math.inf
    """Stop cleanly after this long; the same command goes on."""

    def __post_init__(self) -> None:
        check_shift(self.noise_shift)
        _ = self.shares  # refuses what is none

    @property
    def shares(self) -> Shares:
        """How many of the examples are changed, and how."""
        return Shares(self.dropout, self.recoloured, self.mirrored)


@dataclass(frozen=True)
class Result:
    """What a finished run came to."""

    steps: int
    images: int
    held_out_loss: float
    checkpoint: str

    def describe(self) -> str:
        """What happened, in a line."""
        return f"{self.checkpoint}: {self.images} pictures, held-out loss {self.held_out_loss:.4f}"


def check_config(config: Config, init: Path | None, out: Path) -> None:
    """Remember what a run's folder is for, and refuse to use it for something else."""
    wanted = {**printable(config), "init": None if init is None else str(init)}
    file = out / "config.json"
    if file.exists():
        there = read_json(file)
        changed = [name for name in wanted if name not in FREE and there.get(name) != wanted[name]]
        if changed:
            name = changed[0]
            raise ValueError(
                f"got {name} {wanted[name]!r} for {out}, expected {there.get(name)!r} as it was begun; "
                "name another --out"
            )
    if rank() == 0:
        write_json(file, wanted)


def read_result(config: Config, out: Path) -> Result | None:
    """What a run of this very config came to, if it is finished."""
    file = out / "result.json"
    written = read_json(file) if file.exists() else {}
    if written.get("config") != printable(config):
        return None
    return Result(**{field.name: written["result"][field.name] for field in fields(Result)})


def printable(config: Config) -> dict[str, Any]:
    """The config as JSON has it: no infinities, no tuples."""
    found = {name: None if value == math.inf else value for name, value in asdict(config).items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
