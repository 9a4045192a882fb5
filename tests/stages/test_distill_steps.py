"""Step distillation, whole, with the real classes at tiny size."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny_models
from snapfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from snapfusion.data.stickers import build
from snapfusion.diffusion.guidance import guide
from snapfusion.diffusion.schedule import Schedule, x_and_noise
from snapfusion.latents import Cache
from snapfusion.stage_folder import PausedError
from snapfusion.stages.distill_steps import stage
from snapfusion.stages.distill_steps.batch import draw_batch
from snapfusion.stages.distill_steps.config import Config
from snapfusion.stages.distill_steps.grid import leaps
from snapfusion.stages.distill_steps.lesson import branches, distillation_loss, losses, teach
from snapfusion.stages.distill_steps.losses import two_step_target, vanilla_loss
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


def random_cache(rows: int = 12) -> Cache:
    draw = torch.Generator().manual_seed(0)
    return Cache(
        latents=torch.randn(rows, 4, 8, 8, generator=draw).half(),
        mirrored=torch.randn(rows, 4, 8, 8, generator=draw).half(),
        captions=torch.arange(1, 2 * rows + 1).reshape(rows, 2),
        embeddings=torch.randn(2 * rows + 1, 5, tiny_models.WIDTH, generator=draw).half(),
        recoloured=torch.zeros(rows, dtype=torch.bool),
    )


def sticker_schedule() -> Schedule:
    return tiny_models.sticker_checkpoint().schedule


# ----------------------------------------------------------------------------------------------------------------------
# One batch


def test_a_batch_depends_on_seed_and_step_alone_and_holds_what_it_says() -> None:
    cache, steps = random_cache(), leaps(sticker_schedule(), 8)
    config = Config(batch=64, p=0.3, guidance=(2.0, 14.0), dropout=0.25, seed=5, steps=8)
    guided = 0
    for step in range(60):
        batch, again = (draw_batch(cache, steps, config, step) for _ in range(2))
        assert torch.equal(batch.latent, again.latent)
        assert sorted(set(batch.leap.t.tolist())) == sorted(steps.t.tolist())  # every step of the student is there
        x, _ = x_and_noise(batch.velocity, batch.latent, *batch.leap.now, "v_prediction")
        assert (x[:, None] - torch.cat([cache.latents, cache.mirrored]).float()).abs().amax((2, 3, 4)).min(
            1
        ).values.max() < 1e-3
        empty = (batch.embedding == batch.empty).all(dim=(1, 2))
        if batch.w is None:
            assert torch.equal(empty, batch.dropped)
        else:
            guided += 1
            assert not empty.any()
            assert batch.w.shape == (64, 1, 1, 1)
            assert 2 <= batch.w.min() < 4 < 12 < batch.w.max() <= 14
    assert guided / 60 == pytest.approx(0.3, abs=0.15)


def test_a_share_is_its_rows_of_the_batch() -> None:
    steps = leaps(sticker_schedule(), 8)
    batch = draw_batch(random_cache(), steps, Config(batch=8, p=1.0), 0)
    half = batch[slice(1, None, 2)]
    for one, whole in ((half.latent, batch.latent), (half.leap.t, batch.leap.t), (half.velocity, batch.velocity)):
        assert torch.equal(one, whole[1::2])
    assert half.w is not None
    assert batch.w is not None
    assert torch.equal(half.w, batch.w[1::2])
    assert torch.equal(half.leap.then[0], batch.leap.then[0][1::2])


@pytest.mark.parametrize("p", [0.0, 1.0], ids=["vanilla", "cfg_aware"])
def test_the_gradient_reaches_the_student_alone(p: float) -> None:
    torch.manual_seed(0)
    student, teacher = tiny_models.tiny_unet(), tiny_models.tiny_unet()
    batch = draw_batch(random_cache(), leaps(sticker_schedule(), 4), replace(CONFIG, p=p), 0)
    distillation_loss(student, teacher, batch, 0.2, bf16=False).backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    missed = [name for name, weight in student.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert [name for name in missed if "to_k" not in name and "to_q" not in name] == []


def calls_of(unet: nn.Module) -> list[tuple[Tensor, ...]]:
    """Fills with (latent, t, embedding) of every call."""
    calls: list[tuple[Tensor, ...]] = []
    unet.register_forward_pre_hook(lambda _, given: calls.append(tuple(tensor.detach().clone() for tensor in given)))
    return calls


def test_teacher_and_student_share_text_and_guidance() -> None:
    """Called by hand with the batch's own w, the teacher's two steps give the target that the stage trains on."""
    torch.manual_seed(0)
    student, teacher = tiny_models.tiny_unet(), tiny_models.tiny_unet()
    batch = draw_batch(random_cache(), leaps(sticker_schedule(), 4), replace(CONFIG, p=1.0), 3)
    assert batch.w is not None
    seen_by_student, seen_by_teacher = calls_of(student), calls_of(teacher)
    target = teach(teacher, batch, bf16=False)
    distilled, original = losses(student, batch, target)
    first, second = seen_by_teacher
    (own,) = seen_by_student
    assert torch.equal(first[1], torch.cat([batch.leap.t, batch.leap.t]))
    assert torch.equal(second[1], torch.cat([batch.leap.t_middle, batch.leap.t_middle]))
    both = torch.cat([batch.embedding, batch.empty.expand_as(batch.embedding)])
    assert all(torch.equal(call[2], both) for call in (first, second, own))
    assert all(torch.equal(call[0], torch.cat([batch.latent, batch.latent])) for call in (first, own))

    def by_hand(latent: Tensor, t: Tensor) -> Tensor:
        cond, uncond = (teacher(latent, t, rows).sample for rows in both.chunk(2))
        return guide(cond, uncond, batch.w)  # pyright: ignore[reportArgumentType]

    with torch.no_grad():
        torch.testing.assert_close(target, two_step_target(by_hand, batch.latent, batch.leap), rtol=1e-4, atol=1e-4)
        cond, uncond = (student(batch.latent, batch.leap.t, rows).sample for rows in both.chunk(2))
        expected = vanilla_loss(batch.w * cond - (batch.w - 1) * uncond, batch.latent, target, batch.leap.now)
        torch.testing.assert_close(distilled, expected, rtol=1e-4, atol=1e-6)
        plain = torch.stack([u if drop else c for c, u, drop in zip(cond, uncond, batch.dropped, strict=True)])
        torch.testing.assert_close(original, nn.functional.mse_loss(plain, batch.velocity), rtol=1e-4, atol=1e-6)


def test_the_vanilla_loss_asks_for_the_caption_alone() -> None:
    torch.manual_seed(0)
    unet = tiny_models.tiny_unet()
    batch = draw_batch(random_cache(), leaps(sticker_schedule(), 4), replace(CONFIG, p=0.0), 0)
    calls = calls_of(unet)
    _, uncond = branches(unet, batch.latent, batch.leap.t, batch)
    assert uncond is None
    assert torch.equal(calls[0][0], batch.latent)
    assert torch.equal(calls[0][2], batch.embedding)


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
