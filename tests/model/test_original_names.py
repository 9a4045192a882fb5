"""Original names of weights, held against diffusers' own way back at Stable Diffusion's size, without weights."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from snapfusion.model.architecture import Architecture
from snapfusion.model.original_names import UNET, VAE, unet_names, vae_names
from snapfusion.model.unet import ElasticUNet

SD15 = Architecture.sd15()
CHANGED = {
    "table3": Architecture.table3(),
    "BK-base": Architecture.bk_base(),
    "BK-small": Architecture.bk_small(),
    "BK-tiny": Architecture.bk_tiny(),
    "no top attention": Architecture.without_top_attention(),
    "copies": SD15.with_copies("mid_block.resnets.0", "down_blocks.0.attentions.1", "up_blocks.3.resnets.2"),
}


def weights_of(architecture: Architecture) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return ElasticUNet(architecture).state_dict()


def test_diffusers_finds_the_way_back_in_the_unet() -> None:
    weights, rename = weights_of(SD15), unet_names(SD15)
    back: Any = convert_ldm_unet_checkpoint({rename(name): name for name in weights}, {"layers_per_block": 2})
    assert back == {name: name for name in weights}


def test_diffusers_finds_the_way_back_in_the_autoencoder() -> None:
    levels = 4
    with torch.device("meta"):
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    weights, rename = vae.state_dict(), vae_names(levels)
    originals = {rename(name): weight for name, weight in weights.items()}
    back: Any = convert_ldm_vae_checkpoint(originals, vae.config)
    assert back.keys() == weights.keys()
    assert all(back[name] is weights[name] for name in weights)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        ("down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
        ("down_blocks.3.resnets.1.conv2.bias", "input_blocks.11.0.out_layers.3.bias"),
        ("mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"),
        ("mid_block.resnets.1.time_emb_proj.bias", "middle_block.2.emb_layers.1.bias"),
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        ("up_blocks.3.resnets.2.conv_shortcut.weight", "output_blocks.11.0.skip_connection.weight"),
        ("conv_norm_out.weight", "out.0.weight"),
    ],
)
def test_names_that_are_known(name: str, original: str) -> None:
    assert unet_names(SD15)(name) == UNET + original


def test_names_of_the_autoencoder_that_are_known() -> None:
    rename = vae_names(4)
    assert (
        rename("encoder.down_blocks.1.resnets.0.conv_shortcut.weight")
        == f"{VAE}encoder.down.1.block.0.nin_shortcut.weight"
    )
    assert rename("decoder.up_blocks.0.resnets.2.norm1.bias") == f"{VAE}decoder.up.3.block.2.norm1.bias"
    assert rename("decoder.up_blocks.2.upsamplers.0.conv.bias") == f"{VAE}decoder.up.1.upsample.conv.bias"
    assert rename("decoder.mid_block.attentions.0.to_out.0.weight") == f"{VAE}decoder.mid.attn_1.proj_out.weight"


@pytest.mark.parametrize("case", CHANGED)
def test_blocks_that_stay_keep_their_names(case: str) -> None:
    whole = {unet_names(SD15)(name): name for name in weights_of(SD15)}
    names = weights_of(CHANGED[case])
    renamed = {unet_names(CHANGED[case])(name): name for name in names}
    assert len(renamed) == len(names)
    copies = {original for original in renamed if ".copies." in original}
    assert {original: renamed[original] for original in renamed.keys() - copies}.items() <= whole.items()
    for original in copies:
        block, rest = original.split(".copies.0.")
        assert f"{block}.{rest}" in whole


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="got the weight label_emb, which the original layout has no name for"):
        unet_names(SD15)("label_emb")
