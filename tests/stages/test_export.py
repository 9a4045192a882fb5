"""A checkpoint becomes a bundle once, and only if it draws as torch does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from snapfusion.bundle import PARTS, read_bundle
from snapfusion.checkpoint import hash_of, save_vae
from snapfusion.cli import main
from snapfusion.generate import open_bundle
from snapfusion.json_file import read_json, write_json
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.runtimes.choice import RUNTIMES
from snapfusion.runtimes.quantisation import psnr, saturates
from snapfusion.settings import settings_for
from snapfusion.stages.export import stage
from snapfusion.stages.export.calibrate import Call, calibrations

CONFIG = stage.Config(name="tiny", steps=3, guidance=2.0, prompts=("a red fox", "a blue whale, flat"))


def test_the_manifest_says_how_far_each_part_is_from_torch(tiny_bundle: Path) -> None:
    parity = read_bundle(tiny_bundle).manifest.figures["parity"]["openvino"]
    assert parity["against"] == "torch float32"
    assert parity["computed_in"] in ("bf16", "f32")
    assert 28 <= parity["text_encoder"]["psnr_db"] <= 120
    assert 28 <= parity["unet"]["psnr_db"] <= 120
    assert 28 <= parity["vae_decoder"]["psnr_db"] <= 120
    assert all(0 < parity[part]["relative_error"] < 0.2 for part in PARTS)
    assert parity["pictures"]["median_psnr_db"] >= 30
    assert parity["pictures"]["n"] == 2


def test_the_same_export_again_does_nothing(tiny_bundle: Path, few_blocks: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in tiny_bundle.rglob("*")}
    result = stage.run(CONFIG, few_blocks, tiny_bundle)
    assert result.figures == read_bundle(tiny_bundle).manifest.figures
    assert {file: file.stat().st_mtime_ns for file in tiny_bundle.rglob("*")} == before


@pytest.mark.slow
def test_a_bundle_draws_in_the_steps_that_its_checkpoint_was_distilled_for(
    few_blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distilled, bundle = tmp_path / "distilled", tmp_path / "bundle"
    shutil.copytree(few_blocks, distilled)
    file = distilled / "scheduler" / "scheduler_config.json"
    write_json(file, {**read_json(file), "distilled_steps": 2})
    stage.run(replace(CONFIG, steps=None, prompts=("a red fox",)), distilled, bundle)
    assert read_bundle(bundle).manifest.defaults.steps == 2
    drawing = ["generate", "a red fox", "--bundle", str(bundle), "--seed", "1", "--quiet", "--out"]
    assert main([*drawing, str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().err == ""
    assert main([*drawing, str(tmp_path / "b.png"), "--steps", "3"]) == 0
    assert capsys.readouterr().err == "snapfusion: 3 steps; this bundle was distilled for 2\n"


def test_what_the_bundle_could_not_draw_is_refused_before_anything_is_converted(
    few_blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_convert", None)
    for change in ({"guidance": 60.0}, {"steps": 2000}, {"prompts": (" ",)}):
        with pytest.raises(ValueError, match=r"got .*, expected"):
            stage.run(stage.Config(**change), few_blocks, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_else_is_left_alone(tiny_bundle: Path, few_blocks: Path, tmp_path: Path) -> None:
    for config, out in ((replace(CONFIG, steps=4), tiny_bundle), (CONFIG, tmp_path)):
        with pytest.raises(ValueError, match="which holds something else; remove it or name a new folder"):
            stage.run(config, few_blocks, out)


@pytest.mark.slow
def test_a_bundle_too_far_from_torch_is_not_written(
    few_blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapfusion.stages.export.parity.PICTURE_FLOOR_DB", 130.0)
    config = replace(CONFIG, text_encoder="fp16", unet="fp16", vae_decoder="fp16", steps=1, prompts=("a red fox",))
    with pytest.raises(ValueError, match=r"got pictures [\d.]+ dB from torch's, expected at least 130 dB"):
        stage.run(config, few_blocks, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_clip_checkpoint_becomes_a_bundle_too(
    tiny_sd_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, given = tmp_path / "bundle", tmp_path / "given"
    shutil.copytree(tiny_sd_checkpoint, given)
    config = json.loads((given / "vae" / "config.json").read_text())
    assert config.pop("scaling_factor") == 0.18215  # Stable Diffusion v1's config is older than the field
    (given / "vae" / "config.json").write_text(json.dumps(config))
    flags = [
        "--unet",
        "fp16",
        "--text-encoder",
        "fp16",
        "--vae-decoder",
        "fp16",
        "--steps",
        "3",
        "--prompts",
        "a red fox",
        "a cat",
    ]
    assert main(["export", str(given), "--out", str(out), *flags]) == 0
    assert "unet" in capsys.readouterr().out
    bundle = read_bundle(out)
    assert bundle.scaling_factor == 0.18215
    assert bundle.schedule.prediction_type == "epsilon"
    assert bundle.manifest.runtimes == {"openvino": dict.fromkeys(PARTS, "fp16")}
    assert json.loads((out / "model_index.json").read_text())["unet"][1] == "UNet2DConditionModel"


@pytest.mark.slow
def test_the_decoder_can_come_from_another_checkpoint(
    few_blocks: Path, tiny_sd_checkpoint: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, prompts=("a red fox",), steps=1)
    out = stage.run(config, few_blocks, tmp_path / "bundle", decoder=tiny_sd_checkpoint).bundle
    decoder = json.loads((out / "vae_decoder" / "config.json").read_text())
    assert decoder["block_out_channels"] == [8, 8, 8]  # the sticker base in small has two levels, and folds pixels
    source = read_bundle(out).manifest.source
    assert (source["checkpoint"], source["decoder"]) == (hash_of(few_blocks), hash_of(tiny_sd_checkpoint))
    with pytest.raises(ValueError, match="holds something else"):
        stage.run(config, few_blocks, out)


def test_a_decoder_of_other_latents_is_refused(
    few_blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    wide = {**tiny_models.sticker_checkpoint().vae.config, "latent_channels": 6, "_use_default_values": []}
    save_vae(PatchAutoencoderKL.from_config(wide), other)
    out = tmp_path / "bundle"
    assert main(["export", str(few_blocks), "--decoder", str(other), "--out", str(out)]) == 2
    assert "got 4 as the UNet's in_channels, expected 6" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["other"]


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "bundle")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bundle_can_hold_files_of_several_runtimes(few_blocks: Path, tmp_path: Path) -> None:
    """Each draws the same picture, and says what it takes."""
    config = replace(CONFIG, runtime=("openvino", "onnx", "torch"), prompts=("a red fox",), steps=2)
    result = stage.run(config, few_blocks, tmp_path / "bundle")
    pictures = {
        runtime: np.asarray(open_bundle(result.bundle, runtime=runtime)("a red fox", seed=3)[0], float)
        for runtime in ("openvino", "onnx", "torch")
    }
    for runtime, picture in pictures.items():
        assert psnr(float(np.mean((picture - pictures["onnx"]) ** 2)), peak=255) >= 30
        for part in PARTS:
            figures = result.figures["parity"][runtime][part]
            assert figures["bytes"] == sum(
                (result.bundle / part / name).stat().st_size
                for name in [*RUNTIMES[runtime].files[part], *(["model.onnx_data"] if runtime == "onnx" else [])]
            )
            assert figures["load_seconds"] > 0
            assert figures["psnr_db"] >= (80 if runtime == "onnx" else 28)
    assert open_bundle(result.bundle).bundle.runtime == "openvino"


@pytest.mark.slow
def test_w8a8_is_calibrated_by_what_is_drawn(few_blocks: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, precision="w8a8", prompts=("a red fox",), steps=2)
    bundle = read_bundle(stage.run(config, few_blocks, tmp_path / "bundle").bundle)
    assert bundle.manifest.runtimes == {"openvino": {"text_encoder": "int8", "unet": "w8a8", "vae_decoder": "w8a8"}}
    assert all(bundle.manifest.figures["parity"]["openvino"][part]["psnr_db"] >= 28 for part in PARTS)
    assert bundle.manifest.figures["w8a8_half_range"] == saturates()


def test_a_precision_that_a_runtime_does_not_know_is_refused(few_blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got fp16 for the text_encoder in onnx, expected one of fp32, w8a8"):
        stage.run(replace(CONFIG, runtime=("onnx",), precision="fp16"), few_blocks, tmp_path / "bundle")


def test_only_the_text_encoder_has_words(few_blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="got int4-words for the unet in openvino, expected one of int8, fp16, int4, w8a8"
    ):
        stage.run(replace(CONFIG, runtime=("openvino",), unet="int4-words"), few_blocks, tmp_path / "bundle")


def test_a_network_too_large_for_onnx_is_refused_before_anything_is_drawn(
    few_blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "LARGEST_ONNX", 10_000)
    monkeypatch.setattr(stage, "record", None)
    with pytest.raises(ValueError, match=r"got --precision w8a8 for onnx and a UNet of .* GB, expected at most"):
        stage.run(replace(CONFIG, runtime=("onnx",), precision="w8a8"), few_blocks, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_is_not_installed_is_named(
    few_blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "is_installed", lambda runtime: False)
    with pytest.raises(ValueError, match=r'pip install "\.\[onnx\]"'):
        stage.run(replace(CONFIG, runtime=("onnx",)), few_blocks, tmp_path / "bundle")


def test_samples_are_spread_over_all_steps() -> None:
    def call(prompt: int, step: int) -> Call:
        return {"sample": np.array([prompt, step])}, np.zeros(1, np.float32)

    calls = {part: [[call(prompt, step) for step in range(40)] for prompt in range(8)] for part in PARTS}
    found = calibrations(calls, floor_db=30.0)["unet"]
    assert len(found.samples) == 64
    assert {int(sample["sample"][0]) for sample in found.samples} == {0, 1, 2, 4, 5, 6}  # three of four prompts
    assert {int(inputs["sample"][0]) for inputs, _ in found.checks} == {3, 7}  # the fourth
    assert not found.half_range
    assert calibrations(calls, floor_db=30.0, half_range=True)["unet"].half_range
    assert len({int(sample["sample"][1]) for sample in found.samples}) > 20


@pytest.mark.slow
def test_a_search_finds_the_shift_that_ends_nearest(few_blocks: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    result = stage.run(replace(CONFIG, timestep_shift="search"), few_blocks, bundle)
    found = result.figures["timestep_shift"]
    assert found["relative_error"][f"{found['chosen']:g}"] == min(found["relative_error"].values())
    assert read_bundle(bundle).schedule.timestep_shift == found["chosen"]
    assert result.describe().startswith(f"timestep shift {found['chosen']:g}: 3 steps end ")


@pytest.mark.slow
def test_a_shift_can_be_asked_for(few_blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, timestep_shift=2.5, guidance_stop=0.5, prompts=("a red fox",))
    assert "timestep_shift" not in stage.run(config, few_blocks, tmp_path / "bundle").figures
    bundle = read_bundle(tmp_path / "bundle")
    assert (bundle.schedule.timestep_shift, bundle.schedule.timestep_spacing) == (2.5, "trailing")
    assert main(["info", str(tmp_path / "bundle")]) == 0
    assert "3 steps of ddim, timestep shift 2.5, guidance 2 in the first 2 of them" in capsys.readouterr().out
    assert [one.guidance_stop for one in settings_for(bundle, "a red fox", seed=0)] == [0.5]


def test_a_guidance_stop_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got guidance stop 0, expected a share of the steps, above 0 and at most 1"):
        stage.Config(guidance_stop=0.0)


def test_a_shift_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got timestep shift 0, expected a number above 0, at most 100"):
        stage.Config(timestep_shift=0.0)
