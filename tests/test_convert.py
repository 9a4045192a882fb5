"""Checkpoints in every form through the command line and back, LoRAs merged, and a hub that cannot be reached."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from snapfusion import cli
from snapfusion.bundle import read_bundle
from snapfusion.checkpoint import load_checkpoint, load_unet, save_checkpoint
from snapfusion.convert import as_folder, find, load
from snapfusion.lora import Lora

UNET = "unet/diffusion_pytorch_model.safetensors"
KEY = "lora_unet_conv_out"


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """It adds 2 to every weight of the UNet's last convolution."""
    weights = {f"{KEY}.lora_down.weight": torch.ones(2, 8, 3, 3), f"{KEY}.lora_up.weight": torch.ones(4, 2, 1, 1)}
    save_file(weights, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_there_and_back_on_the_command_line(
    tiny_sd_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    save_checkpoint(load_checkpoint(tiny_sd_checkpoint), half, torch.float16)
    (half / "licences.json").write_text(json.dumps({"weights": "MIT"}, indent=2) + "\n")
    assert cli.main(["convert", str(half), "--out", str(tmp_path / "model.safetensors")]) == 0
    assert cli.main(["convert", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "back")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/model.safetensors: float16\n{tmp_path}/back: float16\n"
    assert files(half) == files(tmp_path / "back")


def test_the_precision_is_the_widest_there_is_or_the_one_asked_for(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    save_checkpoint(load_checkpoint(tiny_sd_checkpoint), mixed, torch.float16)
    shutil.copyfile(tiny_sd_checkpoint / UNET, mixed / UNET)
    assert cli.main(["convert", str(mixed), "--out", str(tmp_path / "wide")]) == 0
    assert load_file(tmp_path / "wide" / UNET)["conv_in.bias"].dtype == torch.float32
    assert cli.main(["convert", str(mixed), "--out", str(tmp_path / "b.safetensors"), "--precision", "bfloat16"]) == 0
    assert {weight.dtype for weight in load_file(tmp_path / "b.safetensors").values()} == {torch.bfloat16}


def test_loras_are_merged_in_their_order(
    tiny_sd_checkpoint: Path, tmp_path: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--lora", f"{lora}:0.25", "--lora", str(lora)]
    assert cli.main(["convert", str(tiny_sd_checkpoint), "--out", str(tmp_path / "out"), *flags]) == 0
    before, after = load_unet(tiny_sd_checkpoint).conv_out.weight, load_unet(tmp_path / "out").conv_out.weight
    torch.testing.assert_close(after, before + 1.25 * 2)
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"{lora}: merged into 1 layers at scale 0.25",
        f"{lora}: merged into 1 layers at scale 1",
    ]


def test_a_folder_is_made_once_for_the_stages(tiny_sd_checkpoint: Path, tmp_path: Path, lora: Path) -> None:
    assert as_folder(tiny_sd_checkpoint, [], tmp_path / "work") == tiny_sd_checkpoint
    assert not (tmp_path / "work").exists()
    made = as_folder(tiny_sd_checkpoint, [Lora(lora, 0.5)], tmp_path / "work")
    written = (made / UNET).stat().st_mtime_ns
    assert as_folder(tiny_sd_checkpoint, [Lora(lora, 0.5)], tmp_path / "work") == made
    assert (made / UNET).stat().st_mtime_ns == written
    killed = tmp_path / "killed.partial"
    shutil.copytree(tmp_path / "work", killed)  # what a kill leaves between the last weights and the stage's end
    (killed / "result.json").unlink()
    (killed / "source.json").write_text(json.dumps(json.loads((tmp_path / "work/result.json").read_text())["source"]))
    again = as_folder(tiny_sd_checkpoint, [Lora(lora, 0.5)], tmp_path / "killed")
    assert (again / UNET).read_bytes() == (made / UNET).read_bytes()
    with pytest.raises(ValueError, match=r"made with scales \[0\.5\], expected \[1\.0\]; remove it"):
        as_folder(tiny_sd_checkpoint, [Lora(lora)], tmp_path / "work")


@pytest.mark.slow
def test_a_single_file_is_exported(tiny_sd_checkpoint: Path, tmp_path: Path, lora: Path) -> None:
    single = tmp_path / "fox.safetensors"
    assert cli.main(["convert", str(tiny_sd_checkpoint), "--out", str(single)]) == 0
    out = tmp_path / "bundle"
    flags = ["--lora", f"{lora}:0.01", "--steps", "2", "--prompts", "a red fox", "--unet", "fp16"]
    assert cli.main(["export", str(single), "--out", str(out), *flags]) == 0
    assert read_bundle(out).manifest.name == "fox"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "fox.safetensors", "lora.safetensors"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "got nothing, expected a folder in diffusers' layout, a .safetensors or a hub's name"),
        (["{sd}/unet/config.json"], "expected a whole safetensors file"),
        (["{sd}", "--lora", "nothing:1"], "nothing: missing, expected a LoRA's .safetensors"),
        (["{sd}", "--precision", "float8"], "precision"),
    ],
)
def test_a_mistake_is_one_line(
    tiny_sd_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [text.format(sd=tiny_sd_checkpoint) for text in arguments]
    assert cli.main(["convert", *given, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("there", "which is there already"), ("model.ckpt", "expected a name that ends in")]
)
def test_nothing_is_overwritten_and_no_pickle_written(
    tiny_sd_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (tmp_path / "there").write_text("mine")
    assert cli.main(["convert", str(tiny_sd_checkpoint), "--out", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "there").read_text() == "mine"


FIND = "import sys; from pathlib import Path; from snapfusion.convert import find; print(find(Path(sys.argv[1])))"


def find_offline(name: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", FIND, name], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_hubs_name_is_found_where_it_was_fetched_before(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--painter--tiny"
    snapshot = shutil.copytree(tiny_sd_checkpoint, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    assert find_offline("painter/tiny", tmp_path).stdout.strip() == str(snapshot)
    assert load(snapshot)[0].length == load_checkpoint(tiny_sd_checkpoint).length
    missing = find_offline("painter/other", tmp_path)
    said = "ValueError: got painter/other, which is not here, expected a folder, a file, or the name of a checkpoint"
    assert missing.stderr.strip().splitlines()[-1].startswith(said)


def test_a_path_that_is_there_is_no_hubs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "painter" / "tiny").mkdir(parents=True)
    assert find(Path("painter/tiny")) == Path("painter/tiny")
