"""Classifier-free guidance (SnapFusion Eq. 3 and 10; Ho and Salimans, arXiv 2207.12598), and where it stops."""

import math
from collections.abc import Sequence

from snapfusion.diffusion.array import A

POSSIBLE_STOPS = "a share of the steps, above 0 and at most 1"


def guide(cond: A, uncond: A, guidance: float | A) -> A:
    """Moves a prediction away from the unconditional one; holds for noise (Eq. 3) and velocity (Eq. 10) alike.

    `cond` and `uncond` are predictions `[B, C, H, W]` for the prompt and for the empty (or negative) prompt;
    `guidance` is a number or broadcasts, `[B, 1, 1, 1]`: 1 is no guidance, larger follows the prompt more closely.
    """
    return guidance * cond - (guidance - 1) * uncond  # Eq. 3


def last_guided(timesteps: Sequence[int], stop: float, guidance: float) -> float:
    """The lowest t that is still guided, infinite where none is: see `guided_steps`. `timesteps` are those that the
    sampler visits, descending.

    What a picture shows is decided near the noise; near the picture guidance costs a second evaluation and changes
    little (Kynkaanniemi et al., arXiv 2404.07724, who leave it out at the noisiest levels too, as is not done here).
    """
    guided = guided_steps(len(timesteps), stop, guidance)
    return timesteps[guided - 1] if guided else math.inf


def guided_steps(steps: int, stop: float, guidance: float) -> int:
    """How many of `steps` are guided, the first ones: the share `stop` (0..1], halves rounded up, and at least one.

    With guidance 1, which is the prompt's own prediction, it is none. Below 1 the picture is the negative prompt's, and
    all of it: the prompt alone would turn it around.
    """
    assert 0 < stop <= 1, stop
    if guidance <= 1:
        return 0 if guidance == 1 else steps
    return max(1, math.floor(stop * steps + 0.5))
