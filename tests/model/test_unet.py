import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_architectures import architectures
from torch import Tensor, nn

from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet

# Of diffusers' UNets: Stable Diffusion v1.5's, v2's (linear projections, heads per level) and the sticker base's.
SHARED = {"cross_attention_dim": 12, "sample_size": 8}
SD15 = {**SHARED, "block_out_channels": (8, 16, 32, 32), "attention_head_dim": 4, "norm_num_groups": 4}
SD2 = {**SD15, "attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True}
STICKERS = {**SHARED, "block_out_channels": (16, 32, 48, 64), "attention_head_dim": (2, 4, 6, 8), "norm_num_groups": 16}
LATENT_CONSISTENT = {**SD15, "layers_per_block": (1, 2, 1, 1), "time_cond_proj_dim": 6}
SMALL = {"sample_size": 8, "cross_attention_dim": 12, "num_attention_heads": 2, "norm_num_groups": 4}


def inputs(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent, embedding = (torch.randn(shape, generator=generator) for shape in [(2, 4, height, width), (2, 5, 12)])
    return latent, torch.tensor([3, 981]), embedding


def small(architecture: Architecture) -> ElasticUNet:
    torch.manual_seed(0)
    return ElasticUNet(architecture, **SMALL)


@torch.no_grad()
def predict(unet: Any, **arguments: Any) -> Tensor:
    return unet(*inputs(), **arguments).sample


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-6)


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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(architectures(), st.data())
def test_a_block_switched_off_is_a_block_removed(architecture: Architecture, data: st.DataObject) -> None:
    unet = small(architecture)
    assert unet.removable == {block.name for block in architecture.blocks() if block.removable}
    off = {name for name in sorted(unet.removable) if data.draw(st.booleans(), label=name)}
    smaller = unet.without(*off)
    assert smaller.architecture == architecture.without(*off)
    assert set(smaller.state_dict()) <= set(unet.state_dict())
    assert smaller.num_parameters() < unet.num_parameters() or not off
    assert close(predict(smaller), predict(unet, off=off))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(architectures(), st.data())
def test_a_new_copy_leaves_the_function_as_it_is(architecture: Architecture, data: st.DataObject) -> None:
    unet = small(architecture)
    if not unet.removable:
        return
    names = data.draw(st.sets(st.sampled_from(sorted(unet.removable)), max_size=3))
    larger = unet.evolve(architecture.with_copies(*names))
    assert close(predict(larger), predict(unet))
    assert len(larger.removable) == len(unet.removable) + len(names)
    assert close(predict(larger.evolve(architecture)), predict(unet))


SD15_SMALL = Architecture.sd15((8, 8, 16, 16))


def test_copies_begin_as_the_identity_or_as_their_original() -> None:
    unet, name = small(SD15_SMALL), "up_blocks.1.resnets.1"
    architecture = SD15_SMALL.with_copies(name)
    original = {f"{name}.copies.0.{key}": weight for key, weight in unet.get_submodule(name).state_dict().items()}
    same = unet.evolve(architecture, start="same").state_dict()
    assert all(torch.equal(same[key], weight) for key, weight in original.items())
    assert not close(predict(unet.evolve(architecture, start="same")), predict(unet))

    identity = unet.evolve(architecture)
    identity(*inputs()).sample.square().sum().backward()
    last = identity.get_submodule(f"{name}.copies.0.conv2")
    assert all(weight.grad is not None and weight.grad.any() for weight in last.parameters())  # it can leave


def test_the_first_copy_takes_its_originals_place() -> None:
    name = "mid_block.attentions.0"
    unet = small(SD15_SMALL.with_copies(name, "up_blocks.2.resnets.1"))
    smaller = unet.without(name)
    assert smaller.architecture == SD15_SMALL.with_copies("up_blocks.2.resnets.1")
    copy = f"{name}.copies.0.proj_in.weight"
    assert torch.equal(smaller.state_dict()[f"{name}.proj_in.weight"], unet.state_dict()[copy])


def test_giving_up_a_skip_across_is_removing_both_resnets() -> None:
    # The last down position and the first up position: nobody else is given another skip than before.
    down, up = "down_blocks.2.resnets.1", "up_blocks.1.resnets.0"
    unet = small(SD15_SMALL)
    given_up = unet.evolve(SD15_SMALL.without_pair(down, up))
    assert torch.equal(predict(given_up), predict(unet.without(down, up)))
    # Another up position: the first one is now given the skip of the first down position.
    shifted = unet.evolve(SD15_SMALL.without_pair(down, "up_blocks.1.resnets.1"))
    assert not close(predict(shifted), predict(unet.without(down, "up_blocks.1.resnets.1")))


def test_a_smaller_network_keeps_the_weights_and_shares_none() -> None:
    unet = small(SD15_SMALL).eval()
    smaller = unet.evolve(Architecture.table3((8, 8, 16, 16)).without("up_blocks.1.attentions.0.copies.0"))
    assert not smaller.training
    weights = unet.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in smaller.state_dict().items() if "copies" not in key)
    smaller.conv_in.weight.data.zero_()
    assert unet.conv_in.weight.abs().sum() > 0


def test_evolving_to_what_is_not_there_is_refused() -> None:
    unet = small(Architecture.without_top_attention((8, 8, 16, 16)))
    with pytest.raises(ValueError, match=r"down_blocks\.0\.attentions\.0.* does not have"):
        unet.evolve(SD15_SMALL)
    with pytest.raises(ValueError, match=r"widths \(8, 8, 16, 24\)"):
        unet.evolve(Architecture.without_top_attention((8, 8, 16, 24)))


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


def test_only_removable_blocks_can_be_switched_off() -> None:
    unet = small(SD15_SMALL)
    for name in ("down_blocks.2.resnets.0", "down_blocks.3.attentions.0"):
        with pytest.raises(ValueError, match=f"got \\['{name}'\\] to switch off"):
            predict(unet, off={name, "mid_block.resnets.0"})
    with pytest.raises(ValueError, match="merge adapters beforehand"):
        predict(unet, cross_attention_kwargs={"scale": 0.5})


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


@pytest.mark.slow
def test_exports_with_no_trace_of_removed_blocks() -> None:
    unet = small(Architecture.bk_small((8, 8, 16, 16)).with_copies("up_blocks.1.attentions.0")).eval()
    program = torch.export.export(unet, inputs(), {"return_dict": False})
    assert program.state_dict.keys() == unet.state_dict().keys()
    graph = program.graph_module.code
    assert "down_blocks_1_resnets_0" in graph
    assert "down_blocks_1_resnets_1" not in graph
    assert "mid_block" not in graph
    latent, t, embedding = inputs()
    other = (latent + 1, t + 7, -embedding)
    assert torch.allclose(program.module()(*other, return_dict=False)[0], unet(*other).sample, atol=1e-6)


DRAW_IN_A_FRESH_PROCESS = """
import sys
import torch
import snapfusion.model.unet
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipeline.unet).__name__ == "ElasticUNet"
draw = dict(prompt="a red fox", num_inference_steps=2, guidance_scale=7.5, output_type="latent")
latent = pipeline(**draw, generator=torch.Generator().manual_seed(1)).images
torch.save(latent, sys.argv[2])
"""


@pytest.mark.slow
def test_an_evolved_network_draws_in_diffusers_pipeline(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    whole = ElasticUNet.from_pretrained(tiny_sd_checkpoint / "unet")
    evolved = whole.evolve(Architecture.table3(whole.architecture.widths), start="same")
    pipeline = DiffusionPipeline.from_pretrained(tiny_sd_checkpoint, unet=evolved)
    pipeline.save_pretrained(tmp_path / "evolved")
    script = [sys.executable, "-c", DRAW_IN_A_FRESH_PROCESS, str(tmp_path / "evolved"), str(tmp_path / "latent.pt")]
    subprocess.run(script, check=True)
    draw = {"num_inference_steps": 2, "guidance_scale": 7.5, "output_type": "latent"}
    expected = pipeline("a red fox", generator=torch.Generator().manual_seed(1), **draw).images
    assert torch.allclose(torch.load(tmp_path / "latent.pt", weights_only=True), expected, atol=1e-4)
