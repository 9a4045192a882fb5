"""Classifier-free guidance (SnapFusion Eq. 3 and 10; Ho and Salimans, arXiv 2207.12598)."""

from snapfusion.diffusion.array import A


def guide(cond: A, uncond: A, guidance: float | A) -> A:
    """Moves a prediction away from the unconditional one; holds for noise (Eq. 3) and velocity (Eq. 10) alike.

    `cond` and `uncond` are predictions `[B, C, H, W]` for the prompt and for the empty (or negative) prompt;
    `guidance` is a number or broadcasts, `[B, 1, 1, 1]`: 1 is no guidance, larger follows the prompt more closely.
    """
    return guidance * cond - (guidance - 1) * uncond  # Eq. 3
