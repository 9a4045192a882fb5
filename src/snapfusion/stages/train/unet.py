"""What the stickers base is to be: its noise schedule and its UNet."""

from snapfusion.diffusion.schedule import Schedule
from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet


def sticker_schedule() -> Schedule:
    """Cosine, with no signal left at the last step, so that sampling may start from noise alone (arXiv 2305.08891)."""
    return Schedule(
        beta_schedule="squaredcos_cap_v2",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


STICKER_WIDTHS = (128, 256, 192, 32)
"""Channels where the base uses them: smaller ones did nothing at 2x2 and little at 4x4 (docs/evolve.md)."""


def sticker_unet(
    channels: int, cross_attention_dim: int, widths: tuple[int, ...] = STICKER_WIDTHS, side: int = 16
) -> ElasticUNet:
    """The stickers base's UNet for latents of `side`: Stable Diffusion v1.5's topology, heads 32 wide.

    Raises `ValueError` where the widths are not four multiples of 32.
    """
    if len(widths) != len(STICKER_WIDTHS) or any(width < 32 or width % 32 for width in widths):
        raise ValueError(f"got widths {widths}, expected four multiples of 32, as {STICKER_WIDTHS}")
    return ElasticUNet(
        architecture=Architecture.sd15(widths),
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        cross_attention_dim=cross_attention_dim,
        num_attention_heads=tuple(width // 32 for width in widths),
        norm_num_groups=32,
    )
