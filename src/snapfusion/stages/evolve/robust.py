"""Robust training (Eq. 5): blocks are left out at random, so that the network bears their removal.

    eps_hat = prod { p(CrossAttention, I), p(ResNet, I) }

Each removable block is replaced by the identity I with some probability, drawn anew for every step. The draw depends on
(seed, step) alone: the same on every rank and after every resumption. The paper gives neither probability nor schedule.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snapfusion.autocast import autocast
from snapfusion.denoising import Batch, draw_batch, weighted_error
from snapfusion.diffusion.schedule import Schedule
from snapfusion.fit import Fit, FitConfig, Share, fit
from snapfusion.latents import HALF_MIRRORED, Cache, Shares
from snapfusion.model.unet import ElasticUNet

EQUATION = 5  # tells this draw of (seed, step) from the batch's


def skip_probability(step: int, probability: float, rise: int) -> float:
    """The probability at a step: it rises linearly from zero over the first `rise` steps, and then stays.

    A network that has never missed a block is thrown far off by missing many at once.
    """
    return probability * min((step + 1) / (rise + 1), 1.0)


def draw_off(removable: Iterable[str], probability: float, seed: int, step: int) -> frozenset[str]:
    """The blocks that one step does without: each with `probability`, independently of the others."""
    names = sorted(removable)
    hits = np.random.default_rng((seed, step, EQUATION)).random(len(names)) < probability
    return frozenset(name for name, hit in zip(names, hits, strict=True) if hit)


class Without(nn.Module):
    """A UNet that does without some of its blocks whenever it is called; it shares the weights."""

    def __init__(self, unet: nn.Module, off: Collection[str]) -> None:
        super().__init__()
        self.unet, self.off = unet, frozenset(off)

    def forward(self, latent: Tensor, t: Tensor | int, embedding: Tensor) -> Any:
        """As `ElasticUNet.forward`."""
        return self.unet(latent, t, embedding, off=self.off)


def robust_loss(
    unet: nn.Module,
    batch: Batch,
    off: Collection[str],
    base: nn.Module | None = None,
    weight: float = 0.0,
    bf16: bool = False,
) -> Tensor:
    """The denoising loss of Eq. 6 without the blocks of `off`, plus `weight` times the distance to `base`'s output.

    `base` is the whole network as it was before any robust training, computed in bfloat16 with `bf16`; None for no such
    term.
    """
    prediction = Without(unet, off)(batch.latent, batch.t, batch.embedding).sample.float()
    loss = weighted_error(prediction, batch.target, batch.weight)
    if base is None:
        return loss
    with torch.no_grad(), autocast(batch.latent.device, bf16):
        wanted = base(batch.latent, batch.t, batch.embedding).sample.float()
    return loss + weight * weighted_error(prediction, wanted, batch.weight)


@dataclass(frozen=True)
class Data:
    """What batches are drawn from, and how."""

    cache: Cache
    schedule: Schedule
    batch: int
    seed: int
    shares: Shares = HALF_MIRRORED
    noise_shift: float = 1.0

    def draw(self, step: int, share: Share) -> Batch:
        """A share of the batch of one step."""
        chosen = (self.batch, self.seed, step, self.shares)
        return draw_batch(self.cache, self.schedule, *chosen, shift=self.noise_shift)[share.rows]


@dataclass(frozen=True)
class Skip:
    """How often blocks are left out, and what holds the network to what it was."""

    probability: float = 0.1
    rise: int = 0
    """Steps over which the probability rises from zero."""
    distil: float = 0.0
    """Weight of the distance to the base's output."""


@dataclass(frozen=True)
class Schooling:
    """How the rounds train: the first for longest, for it is where the network learns to do without blocks."""

    first_steps: int
    steps: int
    skip: Skip
    fit: FitConfig
    """Of every round, but for its number of steps, its seconds and its name."""

    def steps_of(self, number: int) -> int:
        """Steps of a round."""
        return self.steps if number else self.first_steps

    def steps_before(self, number: int) -> int:
        """Steps of all rounds before it: where it goes on in the data."""
        return sum(map(self.steps_of, range(number)))


def train_robustly(
    unet: ElasticUNet, base: ElasticUNet, data: Data, schooling: Schooling, number: int, folder: Path
) -> Fit:
    """The robust training of one round, of `unet` in place; it goes on after a kill: see `fit`.

    Blocks that a step leaves out get no gradient in it, which DDP has to be told: `fit.skips_blocks`.
    """
    assert schooling.fit.skips_blocks
    base.requires_grad_(False).eval()
    unet.for_training()
    skip, first = schooling.skip, schooling.steps_before(number)
    bf16 = schooling.fit.precision == "bf16"

    def loss(prepared: nn.Module, step: int, share: Share) -> Tensor:
        at = first + step
        off = draw_off(unet.removable, skip_probability(at, skip.probability, skip.rise), data.seed, at)
        batch = data.draw(at, share)
        return robust_loss(prepared, batch, off, base if skip.distil else None, skip.distil, bf16)

    name = f"robust training, round {number}"
    return fit(unet, loss, replace(schooling.fit, steps=schooling.steps_of(number), name=name), folder)
