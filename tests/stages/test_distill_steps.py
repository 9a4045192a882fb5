"""Step distillation, whole, with the real classes at tiny size."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny_models
from snapfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from snapfusion.data.stickers import build
from snapfusion.diffusion.schedule import Schedule
from snapfusion.stage_folder import PausedError
from snapfusion.stages.distill_steps import stage
from snapfusion.stages.distill_steps.config import Config
from snapfusion.stages.distill_steps.plan import Leg, direct, progressive, run_plan
from snapfusion.stages.distill_steps.stage import check_pair, run
from tiny_stickers import tiny_packages

CONFIG = Config(
    images=24, batch=4, lr=1e-3, warmup=1, ema=0.9, steps=4, p=0.5, variants=2, observe_steps=3, precision="no",
    tracker=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 32 px pictures."""
    folder = tmp_path_factory.mktemp("stickers")
    with pytest.MonkeyPatch.context() as patch:
        return build(folder / "set", size=32, cache=tiny_packages(folder / "packages", patch), workers=1)


@pytest.fixture(scope="module")
def teacher(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` with a UNet that has learned something else."""
    torch.manual_seed(1)
    other = replace(load_checkpoint(tiny_checkpoint), unet=tiny_models.tiny_unet())
    folder = tmp_path_factory.mktemp("teacher")
    save_checkpoint(other, folder)
    (folder / "licences.json").write_text('{"model": "Apache-2.0"}')
    return folder


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")


# ----------------------------------------------------------------------------------------------------------------------
# The run


def test_a_student_becomes_a_checkpoint_that_says_its_steps(
    data: Path, tiny_checkpoint: Path, teacher: Path, tmp_path: Path
) -> None:
    result = run(replace(CONFIG, timestep_shift=2.0), teacher, tiny_checkpoint, data, tmp_path / "a")
    written, before = load_checkpoint(result.checkpoint), load_checkpoint(teacher)
    assert written.schedule == replace(before.schedule, distilled_steps=4, timestep_shift=2.0)
    assert any(
        not torch.equal(weight, weights(teacher)[name].half()) for name, weight in weights(result.checkpoint).items()
    )
    assert (result.checkpoint / "licences.json").read_text() == '{"model": "Apache-2.0"}'
    looks = [json.loads(line) for line in (tmp_path / "a" / "history.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [3, 6]
    assert result.figures["images"] == 24
    assert looks[-1]["vanilla"] == pytest.approx(result.figures["after"]["vanilla"], rel=0.05)  # rounded to float16
    assert not (tmp_path / "a" / "fit").exists()
    assert "4 steps" in result.describe()


def test_a_finished_run_is_only_read(
    data: Path, tiny_checkpoint: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, images=4)
    first = run(config, teacher, tiny_checkpoint, data, tmp_path / "a")
    monkeypatch.setattr(stage, "distil", None)
    assert run(replace(config, max_seconds=1.0), teacher, tiny_checkpoint, data, tmp_path / "a") == first
    with pytest.raises(ValueError, match="made with teacher"):
        run(config, teacher, teacher, data, tmp_path / "a")


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("part", "at"), [("distillation_loss", 4), ("carry_licences", 0)])
def test_a_killed_run_and_a_paused_one_end_with_the_same_weights(
    data: Path,
    tiny_checkpoint: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    at: int,
) -> None:
    undisturbed = weights(run(CONFIG, teacher, tiny_checkpoint, data, tmp_path / "a").checkpoint)
    calls, work = [], getattr(stage, part)

    def deadly(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at + 1:
            raise Killed
        return work(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(stage, part, deadly)
        with pytest.raises(Killed):
            run(CONFIG, teacher, tiny_checkpoint, data, tmp_path / "b")
    with pytest.raises(PausedError):
        run(replace(CONFIG, max_seconds=0.0), teacher, tiny_checkpoint, data, tmp_path / "c")
    for name in ("b", "c"):
        resumed = weights(run(CONFIG, teacher, tiny_checkpoint, data, tmp_path / name).checkpoint)
        assert all(torch.equal(resumed[key], weight) for key, weight in undisturbed.items()), name


def test_training_brings_the_student_to_its_teacher(
    data: Path, tiny_checkpoint: Path, teacher: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, images=8 * 24, batch=8, lr=4e-3, guidance=(1.0, 4.0), observe_steps=1000)
    result = run(config, teacher, tiny_checkpoint, data, tmp_path / "a")
    before, after = result.figures["before"], result.figures["after"]
    assert after["vanilla"] < 0.7 * before["vanilla"]
    assert after["cfg_aware"] < 0.7 * before["cfg_aware"]


def other(checkpoint: Checkpoint, change: str) -> Checkpoint:
    """A checkpoint that differs in one thing."""
    if change == "noise levels":
        return replace(checkpoint, schedule=replace(checkpoint.schedule, beta_schedule="scaled_linear"))
    if change == "distilled":
        return replace(checkpoint, schedule=replace(checkpoint.schedule, distilled_steps=16))
    if change == "shift":
        return replace(checkpoint, schedule=replace(checkpoint.schedule, distilled_steps=8, timestep_shift=2.0))
    if change == "prediction":
        return replace(checkpoint, schedule=Schedule())
    fresh = tiny_models.sticker_checkpoint()
    part = {"text encoder": "text_encoder", "latents": "vae"}[change]
    return replace(checkpoint, **{part: getattr(fresh, part)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prediction", r"got a teacher that predicts epsilon, .*distill velocity"),
        ("distilled", r"got a teacher distilled for 16 steps to teach 4, expected one for 8"),
        ("shift", r"got a teacher distilled with timestep shift 2, expected 1 as the student's"),
        ("noise levels", "different noise levels"),
        ("text encoder", "different text encoders"),
        ("latents", "different latents"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(change: str, message: str) -> None:
    student = tiny_models.sticker_checkpoint()
    check_pair(student, student, 4)
    with pytest.raises(ValueError, match=message):
        check_pair(student, other(student, change), 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("p", 1.5),
        ("gamma", -1.0),
        ("guidance", (14.0, 2.0)),
        ("steps", 0),
        ("gamma", math.nan),
        ("timestep shift", 0.0),
        ("--batch", 0),
        ("--accumulate", 0),
        ("--observe-steps", 0),
        ("--images", 31),
    ],
)
def test_an_impossible_config_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"got {field} "):
        Config(**{field.removeprefix("--").replace(" ", "_").replace("-", "_"): value})


# ----------------------------------------------------------------------------------------------------------------------
# The pipeline


def test_the_papers_pipeline() -> None:
    config = Config(images=960)
    assert [(leg.name, leg.student, leg.teacher, leg.config.steps, leg.config.p) for leg in direct(config)] == [
        ("base-16", "base", "base", 16, 0.1),
        ("evolved-16", "evolved", "evolved", 16, 0.1),
        ("evolved-8", "evolved-16", "base-16", 8, 0.1),
    ]
    assert [(leg.name, leg.teacher) for leg in direct(config, "self")] == [
        ("evolved-16", "evolved"),
        ("evolved-8", "evolved-16"),
    ]
    vanilla = direct(config, "base")
    assert (vanilla[0].name, vanilla[0].config.p, vanilla[2].teacher) == ("base-vanilla-16", 0.0, "base-vanilla-16")
    legs = progressive(config)
    assert [(leg.student, leg.teacher, leg.config.steps, leg.config.images) for leg in legs] == [
        ("evolved", "evolved", 32, 320),
        ("evolved-progressive-32", "evolved-progressive-32", 16, 320),
        ("evolved-progressive-16", "evolved-progressive-16", 8, 320),
    ]
    with pytest.raises(ValueError, match="got 20 steps to come down to 8"):
        progressive(config, first=20)


@pytest.mark.slow
def test_the_legs_of_a_plan_follow_one_another(
    data: Path, tiny_checkpoint: Path, teacher: Path, tmp_path: Path
) -> None:
    plan = direct(replace(CONFIG, images=8, steps=2))
    results = run_plan(plan, {"base": tiny_checkpoint, "evolved": teacher}, data, tmp_path / "chain")
    assert [load_checkpoint(result.checkpoint).schedule.distilled_steps for result in results.values()] == [4, 4, 2]
    sources = json.loads((tmp_path / "chain" / "evolved-2" / "result.json").read_text())["source"]["inputs"]
    assert len({sources["student"], sources["teacher"]}) == 2
    alone = run_plan(plan, {"base": tiny_checkpoint, "evolved": tiny_checkpoint}, data, tmp_path / "alone")
    assert alone["base-4"] == alone["evolved-4"]
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["base-4", "cache", "evolved-2"]
    with pytest.raises(ValueError, match="got nobody in leg x, expected one of base"):
        run_plan((Leg("x", "base", "nobody", CONFIG),), {"base": tiny_checkpoint}, data, tmp_path / "chain")
