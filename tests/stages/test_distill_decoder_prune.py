"""What is left of a decoder: the function it keeps, whose channels stay, how small it is."""

import math

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from snapfusion.stages.distill_decoder.prune import Criterion, better_half, halve, spread_half
from snapfusion.stages.distill_decoder.students import half, tiny
from tiny_autoencoder import KINDS, autoencoder, stable_diffusions


def widened(decoder: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a decoder of twice the widths and the same function: every channel stands there twice, side by
    side and so in the same group, and nobody reads the first of the two."""
    wide = {}
    for name, weight in decoder.state_dict().items():
        if not name.startswith("conv_out."):
            weight = weight.repeat_interleave(2, dim=0)
        if weight.ndim > 1 and not name.startswith("conv_in."):
            weight = weight.repeat_interleave(2, dim=1).clone()
            weight[:, ::2] = 0
        if ".to_q." in name:
            weight = weight * math.sqrt(2)  # attention divides by the root of the width
        if ".to_k." in name:
            weight = weight.clone()
            weight[::2] = 0
        wide[name] = weight
    return wide


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_nobody_reads_go_and_the_function_stays(kind: str) -> None:
    narrow = autoencoder(8, 16, 16, **KINDS[kind])
    wide = autoencoder(16, 32, 32, **KINDS[kind])
    for name, weight in narrow.named_parameters():  # norms as training leaves them, not all ones and zeros
        if "norm" in name:
            nn.init.normal_(weight, mean=1.0, std=0.5)
    wide.decoder.load_state_dict(widened(narrow.decoder))
    assert wide.post_quant_conv is not None
    assert narrow.post_quant_conv is not None
    wide.post_quant_conv.load_state_dict(narrow.post_quant_conv.state_dict())
    student = half(wide, "magnitude", seed=0)
    for name, weight in narrow.decoder.state_dict().items():
        torch.testing.assert_close(student.decoder.state_dict()[name], weight, atol=1e-6, rtol=1e-6)
    latent = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        expected, drawn = wide.decode(latent).sample, student.decode(latent).sample
        torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)
        by_chance = half(wide, "random", seed=0).decode(latent).sample
    assert (by_chance - expected).std() > 0.1 * expected.std()
    assert drawn.shape == (2, 3, 16 * narrow.patch_size, 16 * narrow.patch_size)


@pytest.mark.parametrize("criterion", ["magnitude", "spread", "random"])
def test_a_decoder_is_pruned_on_the_device_where_it_lies(criterion: Criterion) -> None:
    """ "meta" is a device that refuses what lies elsewhere, as a GPU does."""
    weights = {name: weight.to("meta") for name, weight in autoencoder(16, 32, 32).decoder.state_dict().items()}
    halved = halve(weights, 2, criterion)
    assert {weight.device.type for weight in halved.values()} == {"meta"}
    assert len(halved["conv_in.weight"]) == len(weights["conv_in.weight"]) // 2


def test_the_better_half_of_every_group_by_hand() -> None:
    strength = torch.tensor([1.0, 4.0, 3.0, 2.0, 9.0, 9.0, 8.0, 9.0])
    assert better_half(strength, 2).tolist() == [1, 2, 4, 5]
    assert better_half(strength, 1).tolist() == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="got 8 channels in 8 groups, expected an even number"):
        better_half(strength, 8)


def test_the_spread_half_of_every_group_by_hand() -> None:
    strength = torch.tensor([1.0, 4.0, 3.0, 2.0, 9.0, 0.0, 8.0, 7.0])
    assert spread_half(strength, 2).tolist() == [0, 1, 4, 5]  # 4 of (4, 3), 1 of (2, 1); 9 of (9, 8), 0 of (7, 0)
    assert spread_half(strength, 1).tolist() == [1, 2, 4, 5]  # 9 of (9, 8), 4 of (7, 4), 3 of (3, 2), 0 of (1, 0)
    with pytest.raises(ValueError, match="got 8 channels in 8 groups, expected an even number"):
        spread_half(strength, 8)


def test_what_is_left_of_a_layers_inputs_has_the_norm_of_all() -> None:
    weights = autoencoder(16, 16).decoder.state_dict()
    weights["mid_block.resnets.0.conv2.weight"].zero_()  # as some are initialised: stays zero, and finite
    narrow = halve(weights, 2, "spread")
    ratio = narrow["conv_out.weight"].norm() / weights["conv_out.weight"].norm()
    assert ratio == pytest.approx(1.0, rel=1e-5)  # the image keeps its channels, so these are all of its rows
    assert narrow["mid_block.resnets.0.conv2.weight"].count_nonzero() == 0
    kept = [(weights["conv_in.bias"] == bias).nonzero().item() for bias in narrow["conv_in.bias"]]
    assert torch.equal(narrow["conv_in.weight"], weights["conv_in.weight"][kept])  # the latent keeps its channels too


def test_random_channels_come_from_the_seed() -> None:
    weights = autoencoder(16, 16).decoder.state_dict()
    first, again, other = (halve(weights, 2, "random", seed)["conv_in.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_half_of_stable_diffusions_decoder_is_a_quarter() -> None:
    full, narrow = stable_diffusions(), stable_diffusions(decoder_block_out_channels=(64, 128, 256, 256))
    sizes = [sum(weight.numel() for weight in vae.decoder.parameters()) for vae in (full, narrow)]
    assert sizes[0] == 49_490_179  # as published
    assert 3.7 < sizes[0] / sizes[1] < 4.1
    shapes = {name: weight.shape for name, weight in halve(full.decoder.state_dict(), 32, "random").items()}
    assert shapes == {name: weight.shape for name, weight in narrow.decoder.state_dict().items()}
    operations = []
    for vae in (full, narrow):
        with FlopCounterMode(display=False) as counter:
            vae.decode(torch.empty(1, 4, 64, 64, device="meta"))
        operations.append(counter.get_total_flops())
    assert 3.7 < operations[0] / operations[1] < 4.1


def test_the_tiny_decoder_is_autoencoder_tinys() -> None:
    """At Stable Diffusion's four levels, with its names of weights; it reads latents as the UNet gives them."""
    ours = tiny(autoencoder(8, 8, 8, 8, scaling_factor=0.5), seed=0)
    theirs = AutoencoderTiny().eval()
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    latent = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(ours.decode(latent / 0.5).sample, theirs.decode(latent).sample)
        folded = tiny(autoencoder(8, 8, 8, patch_size=4, latent_channels=8), seed=0)
        assert folded.decode(torch.randn(1, 8, 4, 4)).sample.shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="got a DecoderTiny to halve"):
        half(ours, "magnitude", seed=0)
