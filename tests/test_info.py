"""`snapfusion info` says what the manifest says, and how large each part is."""

import json
from pathlib import Path

import pytest

from snapfusion.bundle import read_bundle
from snapfusion.cli import main


def test_people_get_aligned_text(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_bundle)]) == 0
    about, parts, figures = (section.splitlines() for section in capsys.readouterr().out.split("\n\n"))
    assert about[0] == f"bundle   tiny  {read_bundle(tiny_bundle).hash[:12]}"
    assert about[2] == "draws    64x64, 3 steps of ddim, guidance 2"
    assert [line.split()[:2] for line in parts[:3]] == [
        ["text_encoder", "int8"],
        ["unet", "int8"],
        ["vae_decoder", "int8"],
    ]
    assert {line.rindex(" MB") for line in parts} == {len(parts[0]) - 3}  # one under the other
    total = sum(file.stat().st_size for file in tiny_bundle.rglob("*") if file.is_file())
    assert parts[-1].split() == ["all", "files", f"{total / 1e6:.1f}", "MB"]
    parity = read_bundle(tiny_bundle).manifest.figures["parity"]["openvino"]
    assert ["parity", "openvino", "unet", "psnr_db", f"{parity['unet']['psnr_db']:g}"] in [
        line.split() for line in figures
    ]


def test_programs_get_json(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_bundle), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert {name: said[name] for name in ("name", "defaults", "figures", "source")} == {
        name: manifest[name] for name in ("name", "defaults", "figures", "source")
    }
    weights = ["unet/openvino_model.xml", "unet/openvino_model.bin", "unet/config.json"]
    assert said["bytes"]["unet"] == sum((tiny_bundle / name).stat().st_size for name in weights)
    assert said["bytes"]["all"] == sum(file.stat().st_size for file in tiny_bundle.rglob("*") if file.is_file())
    assert (said["size"], said["latent"], said["tokens"]) == (64, [4, 16, 16], 16)


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "manifest.json: missing" in err
