"""What an evolved checkpoint is to others: a pipeline of diffusers, an export without a trace of what went."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from snapfusion.checkpoint import load_checkpoint, save_checkpoint
from snapfusion.model.unet import ElasticUNet
from snapfusion.runtimes import openvino
from snapfusion.sampling import Sampling, draw_latents
from snapfusion.stages.export.modules import Unet

REMOVED = ("down_blocks.1.attentions.0", "down_blocks.0.attentions.1", "up_blocks.1.resnets.1")
COPIED = "up_blocks.2.attentions.1"

DRAW_IN_A_FRESH_PROCESS = """
import sys
import torch
import snapfusion.model.unet
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipeline).__name__ == "StableDiffusionPipeline"
draw = dict(prompt="a red fox", num_inference_steps=2, guidance_scale=7.5, output_type="latent")
torch.save(pipeline(**draw, generator=torch.Generator().manual_seed(1)).images, sys.argv[2])
"""


def evolved(unet: ElasticUNet) -> ElasticUNet:
    smaller = unet.without(*REMOVED)
    return smaller.evolve(smaller.architecture.with_copies(COPIED), start="same").eval()


@pytest.mark.slow
def test_an_evolved_checkpoint_is_a_pipeline_of_diffusers(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    base = load_checkpoint(tiny_sd_checkpoint)
    small = replace(base, unet=evolved(base.unet))
    save_checkpoint(small, tmp_path / "small")
    script = [sys.executable, "-c", DRAW_IN_A_FRESH_PROCESS, str(tmp_path / "small"), str(tmp_path / "latent.pt")]
    subprocess.run(script, check=True)
    theirs = torch.load(tmp_path / "latent.pt", weights_only=True)
    ours = draw_latents(small, ["a red fox"], [1], Sampling(steps=2, guidance=7.5))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_export_has_no_trace_of_removed_blocks(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    base = load_checkpoint(tiny_sd_checkpoint).unet
    small = base.without(*REMOVED).eval()
    example = {
        "sample": torch.zeros(2, 4, 16, 16),
        "timestep": torch.tensor([1]),
        "encoder_hidden_states": torch.zeros(2, 16, 16),
    }
    graphs, sizes = {}, {}
    for name, unet in (("base", base), ("small", small)):
        openvino.export(Unet(unet), example, "out_sample", tmp_path / name)
        graphs[name] = (tmp_path / name / openvino.FILES[0]).read_text()
        sizes[name] = (tmp_path / name / openvino.FILES[1]).stat().st_size
    for block in REMOVED:
        assert f"{block}." in graphs["base"]
        assert f"{block}." not in graphs["small"]
    for operation in ("Convolution", "MatMul"):
        assert graphs["small"].count(f'type="{operation}"') < graphs["base"].count(f'type="{operation}"')
    removed = sum(weight.numel() for block in REMOVED for weight in base.get_submodule(block).parameters())
    assert sizes["base"] - sizes["small"] == pytest.approx(2 * removed, rel=0.05)  # float16


def test_removed_blocks_take_their_multiplications_with_them(tiny_sd_checkpoint: Path) -> None:
    base = load_checkpoint(tiny_sd_checkpoint).unet
    inputs = torch.zeros(1, 4, 16, 16), 1, torch.zeros(1, 16, 16)

    def operations(unet: torch.nn.Module, **options) -> tuple[int, dict[str, int]]:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            unet(*inputs, **options)
        return counter.get_total_flops(), {name: sum(of.values()) for name, of in counter.get_flop_counts().items()}

    total, by_module = operations(base)
    blocks = sum(by_module[f"ElasticUNet.{name}"] for name in REMOVED)
    assert blocks > 0
    assert operations(base.without(*REMOVED))[0] == total - blocks
