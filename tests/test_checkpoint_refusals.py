"""Checkpoints that are broken, or another's, are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from snapfusion.checkpoint import load_checkpoint, save_checkpoint
from tiny_models import LENGTH, stable_diffusion_checkpoint

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_sd_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(tiny_sd_checkpoint, tmp_path / "checkpoint")


def edit_weights(file: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(file)
    edit(weights)
    save_file(weights, file)


def drop(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def truncate(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def config(name: str, **fields: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        value = {**json.loads((folder / name).read_text()), **fields}
        (folder / name).write_text(json.dumps(value))

    return change


def weights(name: str, edit: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Any]:
    return lambda folder: edit_weights(folder / name, edit)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (drop("model_index.json"), "model_index.json: missing, expected a JSON object"),
    "no config": (drop("unet/config.json"), "unet/config.json: missing, expected a JSON object"),
    "no schedule": (drop("scheduler/scheduler_config.json"), "scheduler_config.json: missing, expected a JSON object"),
    "no weights": (drop(UNET), "unet: got ['config.json'], expected diffusion_pytorch_model.safetensors"),
    "a pickle": (
        lambda folder: (folder / TEXT).rename(folder / "text_encoder" / "pytorch_model.bin"),
        "got pytorch_model.bin, expected model.safetensors: a pickle can run code when it is opened",
    ),
    "truncated": (truncate(UNET), "expected a whole safetensors file"),
    "empty": (lambda folder: (folder / VAE).write_bytes(b""), "expected a whole safetensors file"),
    "a weight missing": (
        weights(UNET, lambda w: w.pop("conv_in.bias")),
        "unet: conv_in.bias: got no such weight, expected one of shape [8]",
    ),
    "a weight of another shape": (
        weights(UNET, lambda w: w.update({"conv_in.bias": torch.zeros(9)})),
        "unet: conv_in.bias: got shape [9], expected [8]",
    ),
    "a weight too many": (
        weights(TEXT, lambda w: w.update(more=torch.zeros(1))),
        "text_encoder: more: got a weight (1 such in all), expected none of that name in a CLIPTextModel",
    ),
    "float64": (
        weights(VAE, lambda w: w.update({"encoder.conv_in.bias": torch.zeros(8).double()})),
        "encoder.conv_in.bias: got torch.float64, expected float16, bfloat16 or float32",
    ),
    "SDXL": (
        config("model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
        "expected just tokenizer, text_encoder, unet, vae, scheduler",
    ),
    "parts of two": (config("vae/config.json", latent_channels=8), "vae: encoder.conv_out.weight: got shape [8, 8,"),
    "prompts too long": (
        config("tokenizer/tokenizer_config.json", model_max_length=17),
        f"got length 17, expected at most {LENGTH} tokens",
    ),
    "no such network": (
        config("text_encoder/config.json", architectures=["pipeline"]),
        "got architecture pipeline, expected a text encoder of transformers",
    ),
    "a wrong number": (
        config("text_encoder/config.json", num_attention_heads=3),
        "text_encoder/config.json: expected values that a network can be built from",
    ),
    "a wrong word": (config("vae/config.json", act_fn="no"), "vae/config.json: expected values that a network"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused_by_name(folder: Path, case: str) -> None:
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises(ValueError, match="expected") as error:
        load_checkpoint(folder)
    assert message in str(error.value)


def test_parts_must_fit_together(folder: Path) -> None:
    checkpoint = stable_diffusion_checkpoint()
    checkpoint.tokenizer.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match="got a tokenizer of 521 tokens, expected at most the text encoder's 520"):
        save_checkpoint(type(checkpoint)(**vars(checkpoint)), folder)


def test_a_single_file_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(ValueError, match="got a file, expected a folder in diffusers' layout; make one"):
        load_checkpoint(folder / UNET)
