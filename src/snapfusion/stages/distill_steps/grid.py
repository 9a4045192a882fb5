"""The steps that a student learns: those that the sampler takes with the student's number of steps, no others.

The paper's t = i/N is trailing spacing (see `schedule.py`), and only there does every step of the student begin where
one of the teacher's does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snapfusion.diffusion.sampler import ddim_path
from snapfusion.diffusion.schedule import Level, Schedule


@dataclass(frozen=True)
class Leap:
    """One step of the student and the two of the teacher that it stands for, t -> t' -> t'', for each of B rows."""

    t: Tensor  # [B] int64, where both begin
    t_middle: Tensor  # [B] int64, t', where the teacher is called again
    now: Level[Tensor]  # (alpha, sigma) at t, [B, 1, 1, 1] float32
    middle: Level[Tensor]  # at t'
    then: Level[Tensor]  # at t''; no noise at all at the end of the last step

    def pick(self, rows: NDArray[np.int64] | slice) -> "Leap":
        """Some of the rows, in the order of `rows`."""
        (alpha, sigma), (alpha_middle, sigma_middle), (alpha_then, sigma_then) = self.now, self.middle, self.then
        return Leap(
            self.t[rows],
            self.t_middle[rows],
            (alpha[rows], sigma[rows]),
            (alpha_middle[rows], sigma_middle[rows]),
            (alpha_then[rows], sigma_then[rows]),
        )

    def to(self, device: torch.device) -> "Leap":
        """The same on another device."""
        now, middle, then = ((a.to(device), s.to(device)) for a, s in (self.now, self.middle, self.then))
        return Leap(self.t.to(device), self.t_middle.to(device), now, middle, then)


def leaps(schedule: Schedule, steps: int) -> Leap:
    """All `steps` steps of a student whose teacher takes twice as many, first to last.

    t and t'' are those of the sampler's path with `steps` steps; t' is the step that it visits in between with twice as
    many. Where T does not divide evenly, diffusers' path arrives up to a step beside where it calls the network next;
    here the teacher's first step arrives at t' itself and its second at the student's t'', so that neither the target
    nor the student carries that slip.

    Raises `ValueError` where the two paths do not begin at the same places.
    """
    path, teacher = ddim_path(schedule, steps), schedule.timesteps(2 * steps)
    if [step.t for step in path] != teacher[::2]:
        raise ValueError(
            f"got {steps} steps with {schedule.timestep_spacing} spacing, which do not begin at every second one of "
            f"{2 * steps}; expected trailing spacing and a number like 4, 8, 16 or 32"
        )
    return Leap(
        t=torch.tensor([step.t for step in path]),
        t_middle=torch.tensor(teacher[1::2]),
        now=_levels([step.now for step in path]),
        middle=_levels([schedule.level(t) for t in teacher[1::2]]),
        then=_levels([step.then for step in path]),
    )


def _levels(levels: Sequence[Level[float]]) -> Level[Tensor]:
    alpha, sigma = torch.tensor(levels, dtype=torch.float32)[:, :, None, None, None].unbind(1)
    return alpha, sigma
