"""The elastic UNet beside diffusers': the same to the last bit, of the published sizes; other kinds are refused."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from tiny_unets import SD15_SMALL, close, inputs, predict, small

# Of diffusers' UNets: Stable Diffusion v1.5's, v2's (linear projections, heads per level) and the sticker base's.
SHARED = {"cross_attention_dim": 12, "sample_size": 8}
SD15 = {**SHARED, "block_out_channels": (8, 16, 32, 32), "attention_head_dim": 4, "norm_num_groups": 4}
SD2 = {**SD15, "attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True}
STICKERS = {**SHARED, "block_out_channels": (16, 32, 48, 64), "attention_head_dim": (2, 4, 6, 8), "norm_num_groups": 16}
LATENT_CONSISTENT = {**SD15, "layers_per_block": (1, 2, 1, 1), "time_cond_proj_dim": 6}


@pytest.mark.parametrize("config", [SD15, SD2, STICKERS, LATENT_CONSISTENT])
def test_equals_diffusers_to_the_last_bit(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(**config)
    torch.manual_seed(0)
    ours = ElasticUNet.from_config(theirs.config)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))  # drawn in the same order
    extra = {"timestep_cond": torch.ones(2, 6)} if "time_cond_proj_dim" in config else {}
    with torch.no_grad():
        for height, width in [(8, 8), (8, 12)]:  # 12 cannot be halved three times
            latent, t, embedding = inputs(height, width)
            for time in (t, 981, 0.5, torch.tensor(7)):
                expected = theirs(latent, time, embedding, **extra).sample
                assert torch.equal(ours(latent, time, encoder_hidden_states=embedding, **extra).sample, expected)
                assert torch.equal(ours(latent, time, embedding, return_dict=False, **extra)[0], expected)


def test_weights_load_from_diffusers_under_their_own_names() -> None:
    theirs = UNet2DConditionModel(**SD2).half().eval()
    ours = ElasticUNet.from_unet(theirs)
    assert ours.dtype == torch.float16
    assert not ours.training
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    ours.conv_in.weight.data.zero_()  # a copy: the teacher stays what it is
    assert theirs.conv_in.weight.abs().sum() > 0


# 859,520,964 is Stable Diffusion v1.5; 579, 482 and 323 million are BK-SDM's published UNets; the other two are sums
# of whole blocks: 846,789,764 = sd15 - 5 * 2,546,240 and 759,327,364 = that - 3 * 31.1 M - 2 * 49.2 M + 3 * 34.8 M.
@pytest.mark.parametrize(
    ("named", "parameters"),
    [
        (Architecture.sd15, 859_520_964),
        (Architecture.without_top_attention, 846_789_764),
        (Architecture.table3, 759_327_364),
        (Architecture.bk_base, 579_384_964),
        (Architecture.bk_small, 482_346_884),
        (Architecture.bk_tiny, 323_384_964),
    ],
)
def test_size_at_stable_diffusions_widths(named: Callable[[], Architecture], parameters: int) -> None:
    with torch.device("meta"):
        unet = ElasticUNet(named())
    assert unet.num_parameters() == parameters


def renumbered(architecture: Architecture) -> Callable[[str], str]:
    """BK-SDM's names: its networks are diffusers' own, so positions and levels count without gaps."""
    missing = len(architecture.widths) - len(architecture.up)
    count, names = Counter(), {}
    for block in architecture.blocks():
        stage = re.sub(r"(?<=^up_blocks\.)\d", lambda number: str(int(number[0]) - missing), block.stage)
        names[block.original] = f"{stage}.{block.kind}s.{count[stage, block.kind]}"
        count[stage, block.kind] += 1

    def rename(key: str) -> str:
        name = next((name for name in names if key.startswith(f"{name}.")), None)
        if name:
            return names[name] + key.removeprefix(name)
        return re.sub(r"(?<=^up_blocks\.)\d", lambda number: str(int(number[0]) - missing), key)

    return rename


WHOLE = ("CrossAttn",) * 3 + ("",)


@pytest.mark.parametrize("widths", [(8, 16, 16, 16), (8, 8, 16, 32)])
@pytest.mark.parametrize(
    ("named", "levels", "mid"),
    [
        (Architecture.bk_base, WHOLE, "UNetMidBlock2DCrossAttn"),
        (Architecture.bk_small, WHOLE, None),
        (Architecture.bk_tiny, WHOLE[:3], None),
    ],
)
def test_bk_sdm_is_diffusers_unet_of_one_layer_a_level(
    named: Callable[..., Architecture], levels: tuple[str, ...], mid: str | None, widths: tuple[int, ...]
) -> None:
    ours = small(Architecture.sd15(widths)).evolve(named(widths))
    theirs = UNet2DConditionModel(
        block_out_channels=widths[: len(levels)],
        layers_per_block=1,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in levels),
        mid_block_type=mid,
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(levels)),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    rename = renumbered(ours.architecture)
    theirs.load_state_dict({rename(key): weight for key, weight in ours.state_dict().items()})
    assert torch.equal(predict(ours), predict(theirs))


def test_saves_and_loads(tmp_path: Path) -> None:
    unet = small(Architecture.table3((8, 8, 16, 16)))
    unet.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == unet.architecture.to_dict()
    again = ElasticUNet.from_pretrained(tmp_path)
    assert again.architecture == unet.architecture
    assert again.state_dict().keys() == unet.state_dict().keys()
    assert all(torch.equal(weight, unet.state_dict()[key]) for key, weight in again.state_dict().items())
    # Where weights lie in memory may change the order of a sum.
    assert close(predict(again), predict(unet))


def test_loads_a_folder_of_diffusers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(**SD2)
    theirs.save_pretrained(tmp_path)
    assert close(predict(ElasticUNet.from_pretrained(tmp_path)), predict(theirs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"addition_embed_type": "text_time"}, "got addition_embed_type = 'text_time', expected None"),  # SDXL
        ({"transformer_layers_per_block": 2}, "got transformer_layers_per_block = 2, expected 1"),
        ({"mid_block_type": "UNetMidBlock2D"}, "got mid_block_type 'UNetMidBlock2D'"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "got the block type 'AttnDownBlock2D'"),
        ({"attention_head_dim": 3}, "got 3 attention heads in down_blocks.0.attentions.0, expected a divisor"),
        ({"attention_head_dim": (4, 4)}, "one for each of widths"),
        ({"cross_attention_dim": (8, 8, 8, 8)}, "got cross_attention_dim = "),
    ],
)
def test_unets_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ElasticUNet.from_config({**SD15, **change})


def test_plain_attention_in_one_line() -> None:
    unet = small(SD15_SMALL.with_copies("mid_block.attentions.0"))
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor2_0}
    expected = predict(unet)
    unet.set_attn_processor(AttnProcessor())
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor}
    assert torch.allclose(predict(unet), expected, atol=1e-5)


def gradients(unet: nn.Module) -> list[Tensor]:
    unet.zero_grad()
    unet(*inputs(), off={"mid_block.attentions.0"}).sample.square().sum().backward()
    return [weight.grad for weight in unet.parameters() if weight.grad is not None]


def test_checkpointing_changes_no_gradient() -> None:
    unet = small(SD15_SMALL.with_copies("up_blocks.1.resnets.1"))
    expected = [grad.clone() for grad in gradients(unet)]
    unet.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(unet), expected)
