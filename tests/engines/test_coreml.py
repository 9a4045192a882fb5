"""What is converted for Core ML, looked at from outside: it runs on a Mac alone, by `benchmarks/coreml_mac.py`."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import coremltools as ct
import pytest
import torch

from snapfusion.bundle import read_bundle
from snapfusion.checkpoint import load_checkpoint
from snapfusion.cli import main
from snapfusion.runtimes import coreml
from snapfusion.stages.export import stage
from snapfusion.stages.export.modules import modules


@pytest.fixture(scope="module")
def folders(tiny_sd_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same UNet plain, with palettes and in two halves."""
    loaded = load_checkpoint(tiny_sd_checkpoint)
    module, example = modules(loaded)["unet"], stage._examples(loaded)["unet"]
    folders = {name: tmp_path_factory.mktemp(name) for name in ("fp16", "palette6", "halves")}
    with torch.no_grad():
        coreml.export(module, example, "out_sample", folders["fp16"])
        coreml.export(module, example, "out_sample", folders["palette6"], "palette6")
        coreml.export(module, example, "out_sample", folders["halves"], halves=True)
    return folders


def spec_of(folder: Path) -> Any:
    return ct.utils.load_spec(str(folder / coreml.FILE))


def operations(spec: Any) -> Counter[str]:
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return Counter(operation.type for operation in block.operations)


def ports(entries: Any) -> dict[str, tuple[int, ...]]:
    return {entry.name: tuple(entry.type.multiArrayType.shape) for entry in entries}


def test_it_is_a_program_that_knows_its_inputs(folders: dict[str, Path]) -> None:
    spec = spec_of(folders["fp16"])
    assert spec.WhichOneof("Type") == "mlProgram"
    assert ports(spec.description.input) == {
        "sample": (1, 4, 16, 16),
        "timestep": (1,),
        "encoder_hidden_states": (1, 16, 16),
    }
    assert [entry.name for entry in spec.description.output] == ["out_sample"]


def test_attention_is_split_by_heads(folders: dict[str, Path]) -> None:
    """16 transformer blocks of two attentions of two heads each: as many softmaxes, none for all heads together."""
    found = operations(spec_of(folders["fp16"]))
    assert found["softmax"] == 16 * 2 * 2
    assert found["scaled_dot_product_attention"] == 0


def test_palettes_take_the_place_of_weights(folders: dict[str, Path]) -> None:
    assert operations(spec_of(folders["fp16"]))["constexpr_lut_to_dense"] == 0
    assert operations(spec_of(folders["palette6"]))["constexpr_lut_to_dense"] > 20  # of layers large enough
    sizes = {name: sum(f.stat().st_size for f in folder.rglob("weight.bin")) for name, folder in folders.items()}
    assert sizes["palette6"] < 0.8 * sizes["fp16"]


def test_halves_are_a_pipeline_of_two(folders: dict[str, Path]) -> None:
    spec = spec_of(folders["halves"])
    assert spec.WhichOneof("Type") == "pipeline"
    first, second = spec.pipeline.models
    assert {"sample", "timestep", "encoder_hidden_states"} >= {*ports(first.description.input)}
    assert [entry.name for entry in second.description.output] == ["out_sample"]


@pytest.mark.skipif(sys.platform == "darwin", reason="there it is run")
def test_a_bundle_says_that_it_was_not_run(
    tiny_sd_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stage.Config(runtime=("coreml",), steps=2, prompts=("a red fox",))
    result = stage.run(config, tiny_sd_checkpoint, tmp_path / "bundle")
    assert f"coreml: not run, because coreml draws on darwin alone, and this is {sys.platform}" in result.describe()
    parity = read_bundle(result.bundle).manifest.figures["parity"]["coreml"]
    assert all(parity[part].keys() == {"bytes"} for part in ("text_encoder", "unet", "vae_decoder"))
    assert main(["info", str(result.bundle)]) == 0
    assert main(["generate", "a red fox", "--bundle", str(result.bundle), "--out", str(tmp_path / "fox.png")]) == 2
    assert "coreml draws on darwin alone" in capsys.readouterr().err
