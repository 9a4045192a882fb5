"""Our latents beside those of diffusers' own pipeline."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from snapfusion.checkpoint import load_checkpoint
from snapfusion.stages.evaluate.cross_check import cross_check
from snapfusion.stages.evaluate.exam import Request

REQUESTS = [Request("fox", "a red fox, 3D render", 3), Request("whale", "the blue whale", 2**32 - 1)]


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_diffusers_draws_the_same_latents(tiny_sd_checkpoint: Path, guidance: float) -> None:
    found = cross_check(tiny_sd_checkpoint, load_checkpoint(tiny_sd_checkpoint), REQUESTS, 6, guidance)
    assert found is not None
    assert found.pictures == 2
    assert found.relative_error < 1e-4
    assert found.passed
    assert found.describe().startswith("diffusers' pipeline: equal, latents within")


def test_a_hubs_checkpoint_of_half_precision_is_checked_too(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    """With files named as the hub's are, and a component that was not fetched."""
    folder = tmp_path / "fetched"
    shutil.copytree(tiny_sd_checkpoint, folder)
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    index = json.loads((folder / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    found = cross_check(folder, load_checkpoint(folder), REQUESTS[:1], 2, 2.0)
    assert found is not None
    assert found.passed


def test_a_checkpoint_that_draws_something_else_is_found_out(tiny_sd_checkpoint: Path) -> None:
    other = load_checkpoint(tiny_sd_checkpoint)
    with torch.no_grad():
        other.unet.conv_out.bias += 0.01
    found = cross_check(tiny_sd_checkpoint, other, REQUESTS, 2, 2.0)
    assert found is not None
    assert found.relative_error > 1e-3
    assert not found.passed
    assert "NOT EQUAL" in found.describe()


def test_a_checkpoint_without_a_pipeline_of_diffusers_is_left_alone(tiny_checkpoint: Path) -> None:
    assert cross_check(tiny_checkpoint, load_checkpoint(tiny_checkpoint), REQUESTS, 2, 2.0) is None
