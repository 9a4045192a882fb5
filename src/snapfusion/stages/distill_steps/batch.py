"""What one step of a distillation is drawn to be, from (seed, step) alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snapfusion.diffusion.schedule import add_noise, velocity
from snapfusion.latents import Cache, draw_examples
from snapfusion.stages.distill_steps.config import Config
from snapfusion.stages.distill_steps.grid import Leap

EQUATION = 11  # tells this draw of (seed, step) from that of the examples


@dataclass(frozen=True)
class Batch:
    """Latents where a step of the student begins, and what it needs to learn that step."""

    latent: Tensor  # [B, C, h, w], z_t
    leap: Leap  # of B rows
    embedding: Tensor  # [B, L, D], of the captions; without guidance the dropped ones are the empty prompt's already
    empty: Tensor  # [1, L, D], of the empty prompt
    dropped: Tensor  # [B] bool, whose caption L_ori does without
    velocity: Tensor  # [B, C, h, w], alpha eps - sigma x (Eq. 6)
    w: Tensor | None  # [B, 1, 1, 1], the guidance of student and teacher; None: the vanilla loss, no guidance

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of its rows: a process's share."""
        return Batch(
            self.latent[rows],
            self.leap.pick(rows),
            self.embedding[rows],
            self.empty,
            self.dropped[rows],
            self.velocity[rows],
            None if self.w is None else self.w[rows],
        )


def draw_batch(cache: Cache, steps: Leap, config: Config, step: int) -> Batch:
    """The batch of one step; `steps` are all those of the student, of which every row gets one.

    P of Eq. 11 is drawn once for the batch, w for each picture. The vanilla loss drops captions from student and
    teacher alike; the CFG-aware one has an unconditional branch anyway, and only its L_ori does.
    """
    drawn = draw_examples(cache, config.batch, config.seed, step, config.shares)
    draw = np.random.default_rng((config.seed, step, EQUATION))
    guided = draw.random() < config.p
    w = torch.from_numpy(draw.uniform(*config.guidance, size=config.batch)).float()
    leap = steps.pick((drawn.place * len(steps.t)).astype(np.int64))
    return Batch(
        latent=add_noise(drawn.x, drawn.noise, *leap.now),
        leap=leap,
        embedding=drawn.embedding if guided else drawn.dropped_embedding(),
        empty=drawn.empty,
        dropped=drawn.dropped,
        velocity=velocity(drawn.x, drawn.noise, *leap.now),
        w=w[:, None, None, None].to(drawn.x.device) if guided else None,
    )
