"""Where few steps are best spent: the timestep shift whose latents end nearest to those of many steps.

The sampler follows the same flow from noise to latent with few steps as with many, only more coarsely, and it errs
where the flow bends: with strong guidance near the noise, where prompts are told apart. Nothing is trained for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snapfusion.checkpoint import Checkpoint
from snapfusion.sampling import Sampling, draw_latents

SHIFTS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
MANY_STEPS = 50
BATCH = 8


@dataclass(frozen=True)
class Search:
    """What was found: for every shift that was tried, how far its latents are from those of many steps."""

    steps: int
    errors: Mapping[float, float]
    """By shift: ||few - many|| / ||many||, the mean over prompts."""

    @property
    def nearest(self) -> float:
        """The shift of the smallest error; of equal ones the first, which is nearest to none."""
        return min(self.errors, key=lambda shift: self.errors[shift])

    def figures(self) -> dict[str, Any]:
        """The same for a manifest."""
        found = {f"{shift:g}": round(error, 4) for shift, error in self.errors.items()}
        return {"chosen": self.nearest, "steps": self.steps, "many_steps": MANY_STEPS, "relative_error": found}


def search(checkpoint: Checkpoint, prompts: Sequence[str], sampling: Sampling) -> Search:
    """Draw the prompts' latents in `MANY_STEPS` steps, then with each of `SHIFTS` in those of `sampling`.

    Picture k has seed k; scheduler and guidance are those of `sampling` throughout. It takes as many calls of the UNet
    a prompt as `MANY_STEPS` + the steps x the number of shifts. Raises `ValueError` as `Schedule.placed` does, before
    any.
    """
    placed = {shift: replace(checkpoint, schedule=checkpoint.schedule.placed(shift)) for shift in SHIFTS}
    asked = prompts, range(len(prompts))
    many = latents(placed[1.0], *asked, replace(sampling, steps=MANY_STEPS))
    found = {shift: relative_error(latents(one, *asked, sampling), many) for shift, one in placed.items()}
    return Search(sampling.steps, found)


def latents(checkpoint: Checkpoint, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling) -> Tensor:
    """Latents `[B, C, h, w]` of B prompts and their seeds, `BATCH` drawn together."""
    parts = [slice(first, first + BATCH) for first in range(0, len(prompts), BATCH)]
    return torch.cat([draw_latents(checkpoint, prompts[part], seeds[part], sampling) for part in parts])


def relative_error(few: Tensor, many: Tensor) -> float:
    """||few - many|| / ||many||, the mean over latents `[B, C, h, w]`."""
    return ((few - many).flatten(1).norm(dim=1) / many.flatten(1).norm(dim=1)).mean().item()
