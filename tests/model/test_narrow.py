"""Narrow UNets: shapes, which channels stay, and a case in which nothing at all is lost."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from snapfusion.model.architecture import Architecture
from snapfusion.model.narrow import Channels, groups_left, kept_places, layers_of, narrow, strength
from snapfusion.model.unet import ElasticUNet


def whole(**config) -> ElasticUNet:
    torch.manual_seed(0)
    widths = (16, 16, 32, 32)
    defaults = {"num_attention_heads": 2, "norm_num_groups": 8, "cross_attention_dim": 12, "sample_size": 16}
    return ElasticUNet(Architecture.sd15(widths), **{**defaults, **config}).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 12)


def test_a_narrow_unet_is_a_unet_of_stable_diffusions_kind() -> None:
    unet = narrow(whole(), 0.7)
    assert groups_left(whole(), 0.7) == 6
    assert unet.architecture == Architecture.sd15((12, 12, 24, 24))
    assert unet(*inputs()).sample.shape == (2, 4, 16, 16)
    theirs = UNet2DConditionModel(
        block_out_channels=(12, 12, 24, 24), attention_head_dim=2, norm_num_groups=6, cross_attention_dim=12
    )
    assert {n: w.shape for n, w in unet.state_dict().items()} == {n: w.shape for n, w in theirs.state_dict().items()}
    assert sum(w.numel() for w in unet.parameters()) < 0.6 * sum(w.numel() for w in whole().parameters())


def test_evolved_unets_are_narrowed_too() -> None:
    architecture = Architecture.sd15((16, 16, 32, 32)).without("mid_block.resnets.1", "down_blocks.0.attentions.0")
    evolved = whole(time_cond_proj_dim=7).evolve(architecture.with_copies("up_blocks.1.resnets.1"), start="same")
    unet = narrow(evolved, 0.5)
    assert [block.name for block in unet.architecture.blocks()] == [b.name for b in evolved.architecture.blocks()]
    assert unet(*inputs(), timestep_cond=torch.ones(2, 7)).sample.shape == (2, 4, 16, 16)


def test_channels_that_do_nothing_are_the_ones_that_go() -> None:
    """Every weight of a ResNet's weak groups is zero behind the norm: without them it computes the same."""
    unet = whole()
    name = "mid_block.resnets.0"
    with torch.no_grad():
        resnet = unet.get_submodule(name)
        weak = torch.arange(32).view(8, 4)[[1, 6]].flatten()
        resnet.conv2.weight[:, weak] = 0
    (inside,) = (layer.writes[0] for layer in layers_of(unet) if layer.name == f"{name}.conv1")
    kept = kept_places(inside, strength(unet.state_dict(), list(layers_of(unet)), inside), 0.75)
    assert kept.tolist() == [channel for channel in range(32) if channel not in weak.tolist()]
    before, after = resnet.state_dict(), narrow(unet, 0.75).get_submodule(name).state_dict()
    assert after["norm2.weight"].shape == (24,)
    stream = kept_places(stream_of(unet), strength(unet.state_dict(), list(layers_of(unet)), stream_of(unet)), 0.75)
    torch.testing.assert_close(after["conv2.weight"], before["conv2.weight"][stream][:, kept])


def stream_of(unet: ElasticUNet) -> Channels:
    (layer,) = (layer for layer in layers_of(unet) if layer.name == "mid_block.attentions.0.norm")
    return layer.writes[0]


def test_which_channels_stay_by_hand() -> None:
    strengths = torch.tensor([1.0, 2.0, 9.0, 0.0, 3.0, 3.0, 0.0, 0.5])
    assert kept_places(Channels("a", 8, "groups", 4), strengths, 0.5).tolist() == [2, 3, 4, 5]
    assert kept_places(Channels("b", 8, "each", 2), strengths, 0.5).tolist() == [1, 2, 4, 5]
    assert kept_places(Channels("c", 8, "each", 1), strengths, 0.25).tolist() == [2, 4]
    assert kept_places(Channels("d", 8, "spaced", 2), strengths, 0.5).tolist() == [0, 2, 4, 6]
    assert kept_places(Channels("e", 8, "all"), strengths, 0.5).tolist() == list(range(8))


def test_widths_that_cannot_be_narrowed_are_refused() -> None:
    with pytest.raises(ValueError, match="got a share of 1 of 8 groups"):
        narrow(whole(), 1.0)
    with pytest.raises(ValueError, match="heads that lose a whole number of channels"):
        narrow(whole(num_attention_heads=16), 0.7)  # heads of one channel
