"""Autoencoders of any widths with random weights, and the kinds of them that there are."""

from typing import Any

import torch

from snapfusion.model.decoder import PatchAutoencoderKL

KINDS = {"folded": {"patch_size": 2, "mid_block_add_attention": False}, "with attention": {}}


def autoencoder(*widths: int, groups: int = 2, **fields: Any) -> PatchAutoencoderKL:
    torch.manual_seed(0)
    levels = len(widths)
    return PatchAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths,
        norm_num_groups=groups,
        sample_size=32,
        **fields,
    ).eval()


def stable_diffusions(**fields: Any) -> PatchAutoencoderKL:
    with torch.device("meta"):
        return autoencoder(128, 256, 512, 512, groups=32, layers_per_block=2, **fields)
