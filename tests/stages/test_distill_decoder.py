"""Half a decoder: the function it keeps, what it learns, and that nothing else of a checkpoint moves."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from snapfusion.checkpoint import load_checkpoint, load_vae
from snapfusion.fit import FitConfig
from snapfusion.metrics.lpips import Lpips
from snapfusion.sampling import decode, draw_latents
from snapfusion.stage_folder import PausedError
from snapfusion.stages.distill_decoder import latents, stage, targets
from snapfusion.stages.distill_decoder.distance import closeness, image_of
from snapfusion.stages.distill_decoder.latents import divide, read_prompts
from snapfusion.stages.distill_decoder.stage import Config, Result, run
from snapfusion.stages.distill_decoder.students import half
from tiny_autoencoder import KINDS, autoencoder
from tiny_evaluation import sticker_set

CONFIG = Config(latents=4, held_out=3, steps=2, guidance=2.0, drawn_together=2, images=6, batch=2, warmup=1, ema=0.5)
PROMPTS = ["a red fox", "a blue whale, flat", "a cat", "a sticker of the fox"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return file


@pytest.fixture(autouse=True)
def _lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS with a level and weights of its own: the published ones are half a gigabyte and not the point."""

    def load_lpips(levels: int = 5, cache: Path | None = None) -> Lpips:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            lpips = Lpips(1)
        nn.init.ones_(lpips.heads[0])
        return lpips

    monkeypatch.setattr(stage, "load_lpips", load_lpips)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_alone_draws_as_its_autoencoder(kind: str) -> None:
    vae, latent = autoencoder(8, 16, **KINDS[kind]), torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        expected = vae.decode(latent / vae.config["scaling_factor"]).sample
        assert torch.equal(image_of(vae.decoder, vae, latent), expected)


def test_closeness_by_hand() -> None:
    teacher = autoencoder(8, 8)
    student = half(teacher, "magnitude", seed=0)
    latent = torch.randn(3, 4, 8, 8)
    found = closeness(student, teacher, latent, Lpips(1), batch=2)
    image, target = (decode(vae, latent).double().numpy() for vae in (student, teacher))
    errors = ((image - target) ** 2).mean(axis=(1, 2, 3))
    assert found["psnr_db"] == pytest.approx(np.mean(-10 * np.log10(errors)), abs=1e-3)


@pytest.mark.parametrize(
    ("base", "student"), [("few_blocks", "half"), ("few_blocks", "tiny"), ("tiny_sd_checkpoint", "half")]
)
def test_only_the_decoder_changes(
    base: str, student: Any, prompts: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(base)
    result = run(replace(CONFIG, student=student), folder, prompts, tmp_path / "out")
    before, after = load_checkpoint(folder), load_checkpoint(result.checkpoint)
    for part in ("text_encoder", "unet"):
        old, new = (getattr(checkpoint, part).state_dict() for checkpoint in (before, after))
        assert all(torch.equal(new[name], weight) for name, weight in old.items())
    encoder = [name for name in before.vae.state_dict() if name.startswith(("encoder.", "quant_conv."))]
    assert all(torch.equal(after.vae.state_dict()[name], before.vae.state_dict()[name]) for name in encoder)
    assert (after.schedule, after.length) == (before.schedule, before.length)

    index = json.loads((result.checkpoint / "model_index.json").read_text())
    assert index["vae"][1] == json.loads((result.checkpoint / "vae" / "config.json").read_text())["_class_name"]
    assert index["vae"][1] == "PatchAutoencoderKL"  # diffusers' own class has one width for both halves

    figures = result.figures
    count = [sum(weight.numel() for weight in model.vae.decoder.parameters()) for model in (before, after)]
    assert figures["parameters_ratio"] == pytest.approx(count[0] / count[1], abs=1e-4)
    assert (figures["prompts"], figures["latents"], figures["held_out"]) == (4, 4, 3)
    latent = draw_latents(after, PROMPTS[:1], [1], latents.Sampling(2, 2.0))
    assert decode(after.vae, latent).shape == (1, 3, 64, 64)
    assert f"{figures['psnr_db']:.1f} dB" in result.describe()


def test_distilling_brings_it_nearer(few_blocks: Path, prompts: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, images=80, batch=4, lr=4e-3, lpips_weight=0.1, accumulate=2, gradient_checkpointing=True)
    figures = run(config, few_blocks, prompts, tmp_path / "out").figures
    assert figures["psnr_db"] > figures["psnr_before_db"] + 3


def weights(result: Result) -> dict[str, torch.Tensor]:
    return load_file(result.checkpoint / "vae" / "diffusion_pytorch_model.safetensors")


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("module", "part", "at", "calls_of_a_run"),
    [(latents, "draw_latents", 3, 4), (targets, "image_of", 2, 2), (stage, "draw_rows", 3, 3)],
)
def test_a_killed_run_ends_with_the_same_weights(
    few_blocks: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    part: str,
    at: int,
    calls_of_a_run: int,
) -> None:
    monkeypatch.setattr(stage, "FitConfig", partial(FitConfig, save_seconds=0))
    undisturbed = run(CONFIG, few_blocks, prompts, tmp_path / "a")
    calls: list[int] = []
    whole: Callable[..., Any] = getattr(module, part)

    def deadly(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise Killed
        return whole(*arguments)

    monkeypatch.setattr(module, part, deadly)
    with pytest.raises(Killed):
        run(CONFIG, few_blocks, prompts, tmp_path / "b")
    resumed = run(CONFIG, few_blocks, prompts, tmp_path / "b")
    assert len(calls) == calls_of_a_run + 1  # what was done before the kill was not done again
    assert resumed.figures == undisturbed.figures
    for name, weight in weights(undisturbed).items():
        assert torch.equal(weights(resumed)[name], weight), name


def test_a_paused_run_goes_on(few_blocks: Path, prompts: Path, tmp_path: Path) -> None:
    undisturbed = run(CONFIG, few_blocks, prompts, tmp_path / "a")
    hurried = replace(CONFIG, max_seconds=0.0)
    pauses = 0
    while True:
        try:
            result = run(hurried, few_blocks, prompts, tmp_path / "b")
            break
        except PausedError:
            pauses += 1
            assert pauses < 20, "it never ends"
    assert pauses > 2
    assert result.figures == undisturbed.figures
    assert all(torch.equal(weights(result)[name], weight) for name, weight in weights(undisturbed).items())
    assert not any((result.checkpoint.parent / name).exists() for name in (stage.FIT, stage.TARGETS))


def test_targets_are_the_pictures_of_the_teacher(tmp_path: Path) -> None:
    teacher, latent = autoencoder(8, 16), torch.randn(5, 4, 4, 4)
    drawn = targets.Targets(tmp_path, len(latent), together=2)
    drawn.draw(teacher, latent.half(), bf16=False, until=math.inf)
    with torch.no_grad():
        expected = teacher.decode(latent.half().float() / teacher.config["scaling_factor"]).sample
    torch.testing.assert_close(drawn[[4, 0, 3, 3]], expected[[4, 0, 3, 3]], atol=2e-3, rtol=1e-3)  # float16 on disk


def test_a_second_student_reads_the_latents_of_the_first(
    few_blocks: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = tmp_path / "latents"
    first = run(CONFIG, few_blocks, prompts, tmp_path / "half", drawn)
    assert not (first.checkpoint.parent / "latents").exists()
    monkeypatch.setattr(latents, "draw_latents", None)  # nothing draws again
    run(replace(CONFIG, student="tiny"), few_blocks, prompts, tmp_path / "tiny", drawn)
    with pytest.raises(ValueError, match=r"got .*latents, made with sampling"):
        run(replace(CONFIG, guidance=3.0), few_blocks, prompts, tmp_path / "other", drawn)


def test_licences_go_with_the_weights(few_blocks: Path, prompts: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(few_blocks, base)
    (base / "licences.json").write_text('{"unet": "Apache-2.0"}')
    made = run(CONFIG, base, prompts, tmp_path / "out").checkpoint
    assert json.loads((made / "licences.json").read_text()) == {"unet": "Apache-2.0"}


@pytest.mark.parametrize(
    ("field", "message"),
    [("images", "expected at least a batch of 2"), ("latents", "expected at"), ("accumulate", "expected at")],
)
def test_a_config_of_nothing_is_refused(field: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"got --{field} 0, {message}"):
        replace(CONFIG, **{field: 0})


def test_a_shift_that_moves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="got timestep shift 0, expected a number above 0"):
        replace(CONFIG, timestep_shift=0.0)


def test_held_out_prompts_are_not_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(["a fox", "", "a fox ", *(f"thing {n}" for n in range(29))]))
    asked = read_prompts(file)
    assert len(asked) == 30
    parts = divide(asked, seed=0)
    assert (len(parts["held-out"]), len(parts["train"])) == (3, 27)
    assert {*parts["held-out"], *parts["train"]} == {*asked}
    file.write_text("a fox")
    with pytest.raises(ValueError, match=r"got 1 prompts .* expected at least two"):
        read_prompts(file)


def test_the_prompts_of_a_subset_are_its_own(tmp_path: Path) -> None:
    data = sticker_set(tmp_path / "set")
    every, of_core = read_prompts(data), read_prompts(data, core=True)
    assert len(of_core) == 12 * 2 * 3
    assert len(every) == 12 * 2 * 4
    assert [prompt for prompt in every if prompt in {*of_core}] == of_core
    assert all("number 4" in prompt for prompt in {*every} - {*of_core})


@pytest.mark.parametrize("subset", ["core", "full"])
def test_latents_are_drawn_from_the_asked_subset(
    subset: Any, few_blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def listen(checkpoint: Any, prompts: list[str], *rest: Any) -> torch.Tensor:
        asked.extend(prompts)
        return draw_latents(checkpoint, prompts, *rest)

    monkeypatch.setattr(latents, "draw_latents", listen)
    data = sticker_set(tmp_path / "set")
    run(replace(CONFIG, latents=60, held_out=30, steps=1, subset=subset), few_blocks, data, tmp_path / "out")
    assert any("number 4" in prompt for prompt in asked) == (subset == "full")


def test_latents_are_those_of_their_prompts_and_seeds(few_blocks: Path, tmp_path: Path) -> None:
    plan = latents.Plan(4, 3, 2, latents.Sampling(2, 2.0), None, seed=0)
    latents.draw(load_checkpoint(few_blocks), divide(PROMPTS, 0), plan, tmp_path, math.inf)
    drawn = latents.load(tmp_path, "train")
    assert drawn.shape == (4, 4, 16, 16)
    order = divide(PROMPTS, CONFIG.seed)["train"]
    numbers = range(3, 7)
    seeds = [latents.noise_seed(CONFIG.seed, number) for number in numbers]
    assert len({*seeds}) == 4
    asked = [order[number % 3] for number in numbers]
    expected = draw_latents(load_checkpoint(few_blocks), asked, seeds, latents.Sampling(2, 2.0))
    torch.testing.assert_close(drawn.float(), expected, atol=4e-3, rtol=1e-3)  # float16 on disk


def test_latents_are_drawn_in_placed_steps_and_the_checkpoint_keeps_its_own(
    few_blocks: Path, prompts: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, scheduler="dpm++", timestep_shift=3.0, images=2)
    made = run(config, few_blocks, prompts, tmp_path / "out").checkpoint
    base, sampling = load_checkpoint(few_blocks), latents.Sampling(2, 2.0, "dpm++")
    base = replace(base, schedule=base.schedule.placed(3.0))
    order = divide(PROMPTS, CONFIG.seed)["held-out"]
    seeds = [latents.noise_seed(CONFIG.seed, number) for number in range(3)]
    expected = draw_latents(base, [order[number % len(order)] for number in range(3)], seeds, sampling)
    drawn = latents.load(tmp_path / "out" / "latents", "held-out")
    torch.testing.assert_close(drawn.float(), expected, atol=4e-3, rtol=1e-3)  # float16 on disk
    assert load_checkpoint(made).schedule == load_checkpoint(few_blocks).schedule


@pytest.mark.slow
@pytest.mark.parametrize("student", ["half", "tiny"])
def test_a_bundle_is_made_of_it_as_of_any_checkpoint(
    student: Any, few_blocks: Path, prompts: Path, tmp_path: Path
) -> None:
    from snapfusion.generate import open_bundle
    from snapfusion.stages.export import stage as export

    made = run(replace(CONFIG, student=student), few_blocks, prompts, tmp_path / "out").checkpoint
    config = export.Config(name="narrow", steps=2, guidance=2.0, prompts=("a red fox",), vae_decoder="fp16")
    bundle = export.run(config, made, tmp_path / "bundle").bundle
    (image,) = open_bundle(bundle)("a red fox", seed=1)
    assert image.size == (64, 64)
    assert load_vae(made).decoder_widths == ((4, 4) if student == "half" else (64, 64))
