"""What runtimes call is the network, under the names of its weights."""

import pytest
import torch

from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.parts import Decoder, Unet
from tiny_models import LENGTH, WIDTH, tiny_unet, tiny_vae


@torch.inference_mode()
@pytest.mark.parametrize("fields", [{}, {"decoder_class": "DecoderTiny"}, {"use_post_quant_conv": False}])
def test_the_decoder_is_the_autoencoders(fields: dict[str, object]) -> None:
    config = {**tiny_vae(levels=2, patch_size=2).config, **fields}
    vae = PatchAutoencoderKL.from_config(config).eval()  # pyright: ignore[reportAttributeAccessIssue]
    decoder = Decoder(vae)
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decoder(latent_sample=latent), vae.decode(latent).sample)
    names = {name for name in vae.state_dict() if name.startswith(("decoder.", "post_quant_conv."))}
    assert decoder.state_dict().keys() == names


@torch.inference_mode()
def test_the_unet_takes_its_time_and_prompt_by_name() -> None:
    unet = tiny_unet().eval()
    sample, embedding = torch.randn(2, 4, 16, 16), torch.randn(2, LENGTH, WIDTH)
    time = torch.tensor([7])
    assert torch.equal(Unet(unet)(sample, time, embedding), unet(sample, 7, embedding).sample)
