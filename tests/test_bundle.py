"""A bundle opens as it was sealed, and whatever was done to it since is one clear error."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snapfusion.bundle import MANIFEST, PARTS, Defaults, read_bundle, seal_bundle

MODEL, WEIGHTS = "unet/openvino_model.xml", "unet/openvino_model.bin"


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to do damage to."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit_manifest(folder: Path, **fields: object) -> None:
    record = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**record, **fields}))


def list_file(folder: Path, name: str) -> None:
    """Let the manifest list `name` with the right hash, as whoever forges a bundle would."""
    data = (folder / name).read_bytes() if (folder / name).is_file() else b""
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = json.loads((folder / MANIFEST).read_text())["files"]
    edit_manifest(folder, files={**files, name: entry})


def test_a_bundle_says_what_it_is(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    assert bundle.latent_shape == (4, 16, 16)
    assert bundle.image_size == 64
    assert bundle.length == 16
    assert bundle.schedule.prediction_type == "v_prediction"
    assert bundle.manifest.defaults == Defaults(steps=3, guidance=2.0, scheduler="ddim")


def test_the_hash_stands_for_all_that_draws_and_for_nothing_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    def hash_with(**changed: object) -> str:
        record = json.loads((tiny_bundle / MANIFEST).read_text())
        (bundle / MANIFEST).write_text(json.dumps({**record, **changed}))
        return read_bundle(bundle).hash

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    own = read_bundle(tiny_bundle).hash
    assert hash_with(figures={"load_seconds": 1.5}) == own
    assert hash_with(defaults={"steps": 4, "guidance": 2.0, "scheduler": "ddim"}) != own
    assert hash_with(source={}) != own


def test_the_manifest_lists_every_other_file_with_its_hash(tiny_bundle: Path) -> None:
    files = json.loads((tiny_bundle / MANIFEST).read_text())["files"]
    there = {file.relative_to(tiny_bundle).as_posix(): file for file in tiny_bundle.rglob("*") if file.is_file()}
    assert files.keys() == there.keys() - {MANIFEST}
    for name, entry in files.items():
        assert entry["sha256"] == hashlib.sha256(there[name].read_bytes()).hexdigest()


def test_the_parts_have_the_names_that_other_tools_expect(tiny_bundle: Path) -> None:
    core = pytest.importorskip("openvino").Core()
    names = {}
    for part in ("text_encoder", "unet", "vae_decoder"):
        model = core.read_model(tiny_bundle / part / "openvino_model.xml")
        inputs = {port.any_name: str(port.partial_shape) for port in model.inputs}
        names[part] = inputs, [port.any_name for port in model.outputs]
    assert names == {
        "text_encoder": ({"input_ids": "[?,16]"}, ["last_hidden_state"]),
        "unet": (
            {"sample": "[?,4,16,16]", "timestep": "[1]", "encoder_hidden_states": "[?,16,16]"},
            ["out_sample"],
        ),
        "vae_decoder": ({"latent_sample": "[?,4,16,16]"}, ["sample"]),
    }


def test_the_scaling_factor_is_not_in_the_decoder(tiny_bundle: Path, few_blocks: Path) -> None:
    import torch

    from snapfusion.checkpoint import load_vae

    latent = np.random.default_rng(0).standard_normal((1, 4, 16, 16), np.float32)
    with torch.no_grad():
        expected = load_vae(few_blocks).decode(torch.from_numpy(latent)).sample.numpy()
    image = read_bundle(tiny_bundle).open("vae_decoder", 1)(latent_sample=latent)
    assert np.abs(image - expected).max() < 0.02 * np.ptp(expected)


def test_a_sealed_manifest_is_read_as_it_was_written(folder: Path) -> None:
    manifest = replace(read_bundle(folder).manifest, figures={"fid": 12.5}, licences={"unet": "Apache-2.0"})
    seal_bundle(folder, manifest)
    assert read_bundle(folder).manifest == manifest


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere, expected a folder with a manifest\.json"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"manifest\.json: missing"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 3}, "got bundle format 3, expected 1 to 2; update snapfusion"),
        ({"format": None}, "got bundle format None, expected 1 to 2"),
        (
            {"runtimes": {"abacus": {}}},
            "got runtime abacus, expected some of openvino, onnx, coreml, executorch, torch; update snapfusion",
        ),
        ({"runtimes": {}}, "got runtime none, expected some of openvino"),
        ({"runtimes": {"openvino": {}, "onnx": {}}}, "text_encoder/model.onnx is missing"),
        ({"defaults": {"speed": 3}}, "no bundle's manifest"),
        ({"files": ["unet/config.json"]}, "no list of files"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(folder: Path, fields: dict[str, object], message: str) -> None:
    edit_manifest(folder, **fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_bundle(folder)


def test_a_manifest_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: expected JSON"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd.json", "unet/../../outside.json", "..\\outside.json"])
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "outside.json").write_text("{}")
    list_file(folder, name)
    with pytest.raises(ValueError, match=re.escape(f"got path {name!r}, expected one inside the bundle")):
        read_bundle(folder)


def test_a_link_that_leaves_the_folder_is_refused(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.rename(folder.parent / "outside.json")
    config.symlink_to(folder.parent / "outside.json")
    with pytest.raises(ValueError, match=r"got path 'unet/config\.json', expected one inside the bundle"):
        read_bundle(folder)


def truncate(folder: Path) -> str:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1])
    return f"{WEIGHTS}: got {len(data) - 1} bytes, expected {len(data)}"


def flip_a_bit(folder: Path) -> str:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    return f"{WEIGHTS}: got other content than was sealed"


def swap(folder: Path) -> str:
    one, other = folder / MODEL, folder / "vae_decoder" / "openvino_model.xml"
    aside = folder / "aside.xml"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return f"{MODEL}: got "


def remove(folder: Path) -> str:
    (folder / WEIGHTS).unlink()
    return f"{WEIGHTS} is missing"


def remove_and_unlist(folder: Path) -> str:
    (folder / MODEL).unlink()
    files = json.loads((folder / MANIFEST).read_text())["files"]
    del files[MODEL]
    edit_manifest(folder, files=files)
    return f"{MODEL} is missing"


def add_a_file(folder: Path) -> str:
    (folder / "unet" / "modeling.py").write_text("print('run')")
    return "got 'unet/modeling.py', which manifest.json does not list; delete it"


def add_a_linked_folder(folder: Path) -> str:
    (folder / "more").symlink_to(folder.parent)
    return "got 'more', which manifest.json does not list"


def add_and_list_code(folder: Path) -> str:
    (folder / "unet" / "modeling.py").write_text("print('run')")
    list_file(folder, "unet/modeling.py")
    return "got file 'unet/modeling.py', expected only data"


def add_and_list_a_pickle(folder: Path) -> str:
    (folder / "unet" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    list_file(folder, "unet/pytorch_model.bin")
    return "got file 'unet/pytorch_model.bin', expected only data"


def list_a_config_without_sizes(folder: Path) -> str:
    (folder / "unet" / "config.json").write_text("{}")
    list_file(folder, "unet/config.json")
    return "got configs that do not make a bundle"


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        swap,
        remove,
        remove_and_unlist,
        add_a_file,
        add_a_linked_folder,
        add_and_list_code,
        add_and_list_a_pickle,
        list_a_config_without_sizes,
    ],
)
def test_a_bundle_that_was_changed_is_refused(folder: Path, damage: Callable[[Path], str]) -> None:
    read_bundle(folder)
    message = damage(folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_bundle(folder)


@pytest.mark.parametrize("runtimes", [5, ["openvino"], {"openvino": 5}])
def test_a_manifest_of_other_kinds_of_values_is_refused(
    folder: Path, edit_json: Callable[..., None], runtimes: Any
) -> None:
    edit_json(folder / "manifest.json", runtimes=runtimes)
    with pytest.raises(ValueError, match=r"manifest\.json: got no bundle's manifest .*; export the bundle again"):
        read_bundle(folder)


def test_a_network_that_does_not_parse_is_refused(folder: Path) -> None:
    (folder / MODEL).write_text("<net")
    list_file(folder, MODEL)
    with pytest.raises(ValueError, match=r"got a file that OpenVINO cannot open .*; export it again"):
        read_bundle(folder).open("unet", 1)


def test_an_unknown_runtime_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(
        ValueError, match="got runtime 'abacus', expected one of openvino, onnx, coreml, executorch, torch"
    ):
        read_bundle(tiny_bundle, "abacus")


def test_a_bundle_of_the_first_format_still_opens(folder: Path) -> None:
    new = json.loads((folder / MANIFEST).read_text())
    weights = new.pop("runtimes")["openvino"]
    (folder / MANIFEST).write_text(json.dumps({**new, "format": 1, "runtime": "openvino", "weights": weights}))
    bundle = read_bundle(folder)
    assert bundle.manifest.runtimes == {"openvino": dict.fromkeys(PARTS, "int8")}
    assert bundle.runtime == "openvino"
