"""Wide UNets: the same function, twins that part, levels made small, widths that cannot be."""

import pytest
import torch

from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from snapfusion.model.widen import widen

WIDTHS = (16, 32, 48, 64)


def whole(**config) -> ElasticUNet:
    torch.manual_seed(0)
    defaults = {"num_attention_heads": (2, 4, 6, 8), "norm_num_groups": 8, "cross_attention_dim": 12, "sample_size": 16}
    return ElasticUNet(Architecture.sd15(WIDTHS), **{**defaults, **config}).double().eval()


def predict(unet: ElasticUNet) -> torch.Tensor:
    torch.manual_seed(1)
    return unet(torch.randn(2, 4, 16, 16).double(), torch.tensor([3, 700]), torch.randn(2, 5, 12).double()).sample


def change(unet: ElasticUNet, other: ElasticUNet) -> float:
    with torch.no_grad():
        return float((predict(unet) - predict(other)).norm() / predict(unet).norm())


@pytest.mark.parametrize("times", [2, 3])
def test_copies_compute_the_same(times: int) -> None:
    wide = widen(whole(), tuple(times * width for width in WIDTHS), noise=0.0)
    assert wide.architecture == Architecture.sd15(tuple(times * width for width in WIDTHS))
    assert wide.heads == tuple(times * heads for heads in (2, 4, 6, 8))  # heads are as wide as they were
    # The sinusoids of a timestep are computed in float32.
    assert change(whole(), wide) < 1e-6


def test_an_evolved_unet_is_widened_too() -> None:
    architecture = Architecture.sd15(WIDTHS).without("mid_block.resnets.1", "down_blocks.0.attentions.0")
    evolved = whole().evolve(architecture.with_copies("up_blocks.1.resnets.1"), start="same").double()
    wide = widen(evolved, tuple(2 * width for width in WIDTHS), noise=0.0)
    assert [block.name for block in wide.architecture.blocks()] == [b.name for b in evolved.architecture.blocks()]
    assert change(evolved, wide) < 1e-6


def test_a_width_that_grows_alone_moves_only_norms_over_two_widths() -> None:
    """Where the norms over two widths are left out, of which one grows, nothing else moves."""
    unet, widths = whole(), (32, 64, 48, 64)
    for module in (unet, wide := widen(unet, widths, noise=0.0)):
        for name, norm in module.named_modules():
            if isinstance(norm, torch.nn.GroupNorm) and name.startswith("up_blocks") and name.endswith("norm1"):
                norm.forward = lambda x: x
    assert wide.architecture.widths == widths
    assert change(unet, wide) < 1e-6


def test_noise_parts_twins_and_moves_the_function_by_its_square() -> None:
    unet, widths = whole(), tuple(2 * width for width in WIDTHS)
    once, twice = (change(unet, widen(unet, widths, noise)) for noise in (0.001, 0.002))
    assert 0 < once < 1e-4
    assert 3.5 < twice / once < 4.5

    for noise, alike in ((0.0, True), (0.1, False)):
        wide = widen(unet, widths, noise)
        predict(wide).square().mean().backward()
        gradient = wide.conv_in.weight.grad
        assert gradient is not None
        assert torch.allclose(gradient[0::2], gradient[1::2], rtol=1e-3) == alike


def test_the_noise_depends_on_the_seed_alone() -> None:
    first, again, other = (widen(whole(), (32, 64, 96, 128), seed=seed).conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_width_that_shrinks_keeps_spaced_channels() -> None:
    unet = widen(whole(), (16, 32, 48, 16))
    assert unet.architecture == Architecture.sd15((16, 32, 48, 16))
    assert unet.heads == (2, 4, 6, 2)
    kept, all_ = unet.state_dict(), whole().state_dict()
    name = "mid_block.resnets.0.norm1.weight"
    assert torch.equal(kept[name], all_[name][::4])
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_v.weight"
    assert torch.equal(kept[name], all_[name][torch.tensor([*range(8), *range(32, 40)])][:, ::4])  # heads 0 and 4
    name = "down_blocks.0.resnets.0.conv1.weight"
    assert torch.equal(kept[name], all_[name])


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((24, 32, 48, 64), "whole multiples or whole parts"),
        ((16, 32, 48), "whole multiples or whole parts"),
        ((0, 32, 48, 64), "whole multiples or whole parts"),
        ((16, 32, 48, 4), r"multiples of heads \[8, 8, 8, 8\] wide and of 8 groups"),
        ((16, 16, 48, 64), "neighbours that differ in width where they did"),
    ],
)
def test_widths_that_cannot_be_are_refused(widths: tuple[int, ...], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        widen(whole(), widths)
