"""Blocks of a UNet switched off, removed and copied: what stays the same, and what cannot be asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_architectures import architectures

from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from tiny_unets import SD15_SMALL, close, inputs, predict, small


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


def test_only_removable_blocks_can_be_switched_off() -> None:
    unet = small(SD15_SMALL)
    for name in ("down_blocks.2.resnets.0", "down_blocks.3.attentions.0"):
        with pytest.raises(ValueError, match=f"got \\['{name}'\\] to switch off"):
            predict(unet, off={name, "mid_block.resnets.0"})
    with pytest.raises(ValueError, match="merge adapters beforehand"):
        predict(unet, cross_attention_kwargs={"scale": 0.5})


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
