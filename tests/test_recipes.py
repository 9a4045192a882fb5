"""Recipes are values, and say beforehand what they take."""

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny_models
from snapfusion import recipes
from snapfusion.checkpoint import load_unet
from snapfusion.cli import main
from snapfusion.costs import cost_of, costs_of
from snapfusion.plan import rows_of
from snapfusion.recipes import RECIPES, inputs_of, stickers
from snapfusion.stages.distill_steps.config import Config
from snapfusion.tiny import write_set


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_value_every_time(name: str) -> None:
    assert RECIPES[name]() == RECIPES[name]()


@pytest.mark.parametrize("name", ["stickers", "sd15"])
def test_the_bundle_draws_in_eight_steps(name: str) -> None:
    """As many as were distilled, which its checkpoint says; or, where none were, as many as its export says."""
    recipe = RECIPES[name]()
    distilled = None if recipe.distill_steps is None else recipe.distill_steps.steps
    assert (distilled, recipe.export.steps) in ((8, None), (None, 8))


def test_the_cost_of_a_convolution_by_hand() -> None:
    conv = nn.Conv2d(4, 8, kernel_size=3, padding=1, device="meta")
    cost = cost_of(conv, lambda: conv(torch.empty(1, 4, 16, 16, device="meta")))
    assert cost.operations == 2 * (16 * 16) * 8 * (4 * 3 * 3)
    assert cost.parameters == 8 * 4 * 3 * 3 + 8
    assert cost.activations == 2 * 4 * 16 * 16  # its input, in two bytes; its weights are not counted


def test_networks_lose_their_weights_when_they_are_counted() -> None:
    checkpoint = tiny_models.stable_diffusion_checkpoint()
    parameters = sum(weight.numel() for weight in checkpoint.unet.parameters())
    costs = costs_of(checkpoint)
    assert (costs.unet.parameters, costs.latent, costs.blocks) == (parameters, 4 * 16 * 16, 34 + 2)
    # Stable Diffusion's 34, and two that here stand between levels of equal width.
    assert all(weight.is_meta for weight in checkpoint.unet.parameters())
    assert costs.unet.operations > costs.unet.activations > 2 * costs.checkpointed > 0


def test_the_plan_follows_the_work() -> None:
    costs, recipe = costs_of(tiny_models.sticker_checkpoint()), replace(stickers(), distill_steps=Config())
    rows = {row.stage: row for row in rows_of(recipe, costs, pictures=1000)}
    assert list(rows) == ["velocity", "evolve", "distill_steps", "distill_decoder", "export", "evaluate"]
    assert recipe.distill_steps is not None
    twice = replace(recipe, distill_steps=replace(recipe.distill_steps, images=2 * recipe.distill_steps.images))
    more = {row.stage: row for row in rows_of(twice, costs, pictures=1000)}
    legs, p = 3, recipe.distill_steps.p
    added = legs * recipe.distill_steps.images * 5 * (1 + p) * costs.unet.operations
    assert more["distill_steps"].operations - rows["distill_steps"].operations == pytest.approx(added)
    assert more["evolve"] == rows["evolve"]
    assert rows["export"].hours(speed=rows["export"].operations / 3600) == pytest.approx(1)
    assert recipe.distill_decoder is not None
    drawn = replace(recipe, distill_decoder=replace(recipe.distill_decoder, latents=recipe.distill_decoder.latents + 7))
    more = {row.stage: row for row in rows_of(drawn, costs, pictures=1000)}["distill_decoder"]
    less = rows["distill_decoder"]
    steps = recipe.distill_decoder.steps
    latent = steps * 2 * costs.unet.operations + costs.decoder.operations  # and its picture, once
    assert more.operations - less.operations == pytest.approx(7 * latent)
    assert more.disk - less.disk == 7 * 2 * (costs.latent + costs.picture)
    assert (costs.picture, costs.embedding) == (3 * 64 * 64, 16 * 16)
    unsearched = replace(recipe, export=replace(recipe.export, timestep_shift=None))
    less = {row.stage: row for row in rows_of(unsearched, costs, pictures=1000)}
    searching = 16 * (50 + 10 * 8) * 2 * costs.unet.operations  # prompts x (many + shifts x few) x rows
    assert rows["export"].operations - less["export"].operations == pytest.approx(searching)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dry-run", "--tflops", "2", "--utilisation", "0.5"]
    assert main(["compress", "--recipe", "tiny", "--out", str(tmp_path / "run"), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "stage", "evolve", "distill_steps", "distill_decoder", "export", "evaluate", "all", "at",
    ]  # fmt: skip
    assert lines[-1] == "at 50% of 2 TFLOP/s"
    petaflops, hours = (float(word) for word in lines[-2].split()[1:3])
    assert hours == pytest.approx(petaflops * 1e15 / 1e12 / 3600, rel=0.02)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--recipe", "stickers"],
            "got no checkpoint, expected a folder in diffusers' layout or a single file for --recipe stickers",
        ),
        (["nowhere", "--recipe", "tiny"], "expected none: --recipe tiny makes its own"),
        (
            ["nowhere", "--recipe", "tiny", "--budget", "1"],
            "got --budget 1, expected a share of the milliseconds, below 1",
        ),
        (["nowhere", "--recipe", "tiny", "--accumulate", "0"], "got --accumulate 0, expected at least 1"),
        (["--recipe", "tiny", "--dry-run", "--utilisation", "2"], "got utilisation 2.0, expected a share"),
        (["--recipe", "large"], "large"),
    ],
)
def test_a_persons_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["compress", *arguments, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_checkpoint_of_yours_is_not_trained_on_stickers(
    tiny_sd_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    out = tmp_path / "run"
    assert main(["compress", str(tiny_sd_checkpoint), "--recipe", "sd15", "--out", str(out), *more]) == 2
    assert f"got no --data, expected captioned pictures like those that {tiny_sd_checkpoint}" in capsys.readouterr().err
    assert not out.exists()


def test_changes_reach_every_stage_and_nothing_else() -> None:
    recipe = recipes.sd15()
    assert recipes.Changes().of(recipe) == recipe
    changed = recipes.Changes(budget=0.3, accumulate=32).of(recipe)
    assert changed.budget == 0.3
    parts = {"velocity": 32, "evolve": 32, "distill_steps": 32, "distill_decoder": 16}  # of a batch of 16
    for stage, accumulate in parts.items():
        assert getattr(changed, stage) == replace(getattr(recipe, stage), accumulate=accumulate)
    assert replace(changed, **{name: getattr(recipe, name) for name in ("budget", *recipes.TRAIN)}) == recipe
    assert recipes.Changes(accumulate=2).of(recipes.stickers()).distill_steps is None


def test_tiny_makes_the_same_checkpoint_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(len(name))  # what was drawn before does not matter
        inputs_of("tiny", None, None, None, tmp_path / name)
    unet = "tiny/checkpoint/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / unet).read_bytes() == (tmp_path / "b" / unet).read_bytes()
    assert {field.name for field in fields(recipes.tiny())} >= {"profile", "evolve", "export"}


def test_pictures_of_another_size_are_refused(tiny_sd_checkpoint: Path, tmp_path: Path, edit_json: Any) -> None:
    write_set(tmp_path / "set")
    larger = Path(shutil.copytree(tiny_sd_checkpoint, tmp_path / "larger"))
    edit_json(larger / "unet" / "config.json", sample_size=32)
    with pytest.raises(ValueError, match=r"with pictures of 64 pixels, expected 128.*--size 128"):
        inputs_of("sd15", larger, tmp_path / "set", None, tmp_path / "run")


def test_a_single_file_becomes_the_folder_that_stages_read(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    assert main(["convert", str(tiny_sd_checkpoint), "--out", str(file)]) == 0
    write_set(tmp_path / "set")
    inputs = inputs_of("sd15", file, tmp_path / "set", None, tmp_path / "run")
    assert (inputs.checkpoint, inputs.name) == (tmp_path / "run" / "checkpoint" / "fox", "fox")
    expected = load_unet(tiny_sd_checkpoint).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_unet(inputs.checkpoint).state_dict().items())
    with pytest.raises(ValueError, match="got a checkpoint, --data or --lora, expected none"):
        inputs_of("tiny", file, None, None, tmp_path / "run")
