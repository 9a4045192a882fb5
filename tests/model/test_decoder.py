"""The autoencoder: diffusers' own with nothing folded, and the same network on folded pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from snapfusion.model.decoder import PatchAutoencoderKL

SIZES = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}


def image(side: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.inference_mode()
def test_with_nothing_folded_it_is_diffusers_to_the_last_bit() -> None:
    ours, theirs = PatchAutoencoderKL(**SIZES).eval(), AutoencoderKL(**SIZES).eval()
    theirs.load_state_dict(ours.state_dict())
    latent = ours.encode(image()).latent_dist.mean
    assert torch.equal(latent, theirs.encode(image()).latent_dist.mean)
    assert torch.equal(ours.decode(latent).sample, theirs.decode(latent).sample)


@torch.inference_mode()
@pytest.mark.parametrize("patch_size", [2, 4])
def test_folding_is_diffusers_on_unshuffled_pixels(patch_size: int) -> None:
    ours = PatchAutoencoderKL(**SIZES, patch_size=patch_size).eval()
    channels = 3 * patch_size**2
    theirs = AutoencoderKL(**SIZES, in_channels=channels, out_channels=channels).eval()
    theirs.load_state_dict(ours.state_dict())
    folded = pixel_unshuffle(image(), patch_size)
    latent = ours.encode(image()).latent_dist.mean
    assert torch.equal(latent, theirs.encode(folded).latent_dist.mean)
    assert latent.shape[-1] * ours.factor == 16
    assert torch.equal(ours.decode(latent).sample, pixel_shuffle(theirs.decode(latent).sample, patch_size))
    assert torch.equal(ours.decode(latent, return_dict=False)[0], ours.decode(latent).sample)


@torch.inference_mode()
def test_it_saves_and_loads_with_its_fold(tmp_path: Path) -> None:
    ours = PatchAutoencoderKL(**SIZES, patch_size=2, scaling_factor=0.5).eval()
    ours.save_pretrained(tmp_path)
    loaded = PatchAutoencoderKL.from_pretrained(tmp_path)
    assert (loaded.patch_size, loaded.config["scaling_factor"], loaded.config["in_channels"]) == (2, 0.5, 3)
    latent = ours.encode(image()).latent_dist.mean
    assert torch.equal(loaded.decode(latent).sample, ours.decode(latent).sample)


def test_a_fold_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got patch_size 0, expected"):
        PatchAutoencoderKL(**SIZES, patch_size=0)


@torch.inference_mode()
def test_a_narrow_decoder_is_that_of_a_narrow_autoencoder() -> None:
    ours = PatchAutoencoderKL(**SIZES, decoder_block_out_channels=(4, 8)).eval()
    theirs = AutoencoderKL(**{**SIZES, "block_out_channels": (4, 8)}).eval()
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    assert ours.post_quant_conv is not None
    assert theirs.post_quant_conv is not None
    theirs.post_quant_conv.load_state_dict(ours.post_quant_conv.state_dict())
    latent = torch.randn(1, 4, 8, 8)
    assert torch.equal(ours.decode(latent).sample, theirs.decode(latent).sample)
    assert ours.encoder.conv_in.out_channels == 8
    assert (ours.decoder_widths, ours.is_diffusers) == ((4, 8), False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_block_out_channels": (8,)}, r"got decoder_block_out_channels \(8,\), expected as many as"),
        ({"decoder_class": "Dcoder"}, "got decoder_class 'Dcoder', expected Decoder or DecoderTiny"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchAutoencoderKL(**SIZES, **fields)
