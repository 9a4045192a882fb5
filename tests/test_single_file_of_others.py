"""Single files as others write them: recognised, or refused by name."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from snapfusion import single_file
from snapfusion.checkpoint import Checkpoint
from snapfusion.json_file import read_json
from snapfusion.model.configs import text_model_of, unet_of, vae_of
from snapfusion.model.original_names import UNET, unet_names
from snapfusion.single_file import CONFIGS, load_single_file, read_header, save_single_file, stable_diffusion_tokenizer
from snapfusion.tokens import tokenize
from tiny_models import LENGTH, WIDTH, seeded, stable_diffusion_checkpoint

BIAS = f"{UNET}input_blocks.0.0.bias"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return seeded(stable_diffusion_checkpoint)


@pytest.fixture
def file(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_single_file(checkpoint, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def strip(file: Path, edit: Callable[[dict[str, Tensor]], Any] = lambda weights: None, **metadata: str) -> Path:
    """The file as others write them: nothing of ours in its metadata."""
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata)
    return file


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    """Let the tiny checkpoint's configuration be one of those that ship with us."""
    monkeypatch.setattr(single_file, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(single_file, "FAMILIES", {WIDTH: "tiny"})
    for name in single_file.NEEDED:
        (tmp_path / "configs" / "tiny" / name).parent.mkdir(parents=True)
        shutil.copyfile(tiny_sd_checkpoint / name, tmp_path / "configs" / "tiny" / name)
    monkeypatch.setattr(single_file, "MERGES", tiny_sd_checkpoint / "tokenizer" / "merges.txt")


# ----------------------------------------------------------------------------------------------------------------------
# Files of others


@pytest.mark.usefixtures("known")
def test_a_file_that_says_nothing_of_itself_is_recognised(checkpoint: Checkpoint, file: Path) -> None:
    extra = {
        "model_ema.decay": torch.zeros(()),
        "alphas_cumprod": torch.zeros(1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.zeros(1, LENGTH),
    }
    loaded = load_single_file(strip(file, lambda weights: weights.update(extra)))
    assert loaded.schedule.prediction_type == "epsilon"
    assert tokenize(loaded.tokenizer, ["a red fox"], LENGTH)[0].tolist() == (
        tokenize(checkpoint.tokenizer, ["a red fox"], LENGTH)[0].tolist()
    )
    for part in ("text_encoder", "unet", "vae"):
        before, after = getattr(checkpoint, part).state_dict(), getattr(loaded, part).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("known")
def test_a_text_encoder_without_its_prefix_is_known(checkpoint: Checkpoint, file: Path) -> None:
    def rename(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if ".transformer.text_model." in name]:
            weights[name.replace(".text_model.", ".")] = weights.pop(name)

    loaded = load_single_file(strip(file, rename)).text_encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in checkpoint.text_encoder.state_dict().items())


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("metadata", "marker", "expected"),
    [({}, [], "epsilon"), ({"modelspec.prediction_type": "v"}, [], "v_prediction"), ({}, ["v_pred"], "v_prediction"),
     ({"modelspec.prediction_type": "epsilon"}, ["v_pred"], "epsilon")],
)  # fmt: skip
def test_what_a_network_predicts_is_read_off_the_file(
    file: Path, metadata: dict[str, str], marker: list[str], expected: str
) -> None:
    strip(file, lambda weights: weights.update({name: torch.zeros(0) for name in marker}), **metadata)
    assert load_single_file(file).schedule.prediction_type == expected


SIZES = {"unet": (859_520_964, 865_910_724), "vae": (83_653_863, 83_653_863), "text": (123_060_480, 340_387_840)}


@pytest.mark.parametrize(("place", "family"), [(0, "v1-5"), (1, "v2-1-base")])
def test_the_configurations_that_ship_are_stable_diffusions(place: int, family: str) -> None:
    """By the number of parameters that the model cards of v1.5 and v2.1 give."""
    configs = {name: read_json(CONFIGS / family / name) for name in single_file.NEEDED}
    with init_empty_weights():
        networks: dict[str, Any] = {
            "unet": unet_of(configs["unet/config.json"]),
            "vae": vae_of(configs["vae/config.json"]),
            "text": text_model_of(configs["text_encoder/config.json"]),
        }
    counted = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    assert counted == {name: sizes[place] for name, sizes in SIZES.items()}


def test_clips_tokens_are_known() -> None:
    """The ids that OpenAI's and transformers' tokenizers give; v2 pads with "!"."""
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenize(stable_diffusion_tokenizer(), ["a photo of a cat"], 7)[0].tolist() == [ids]
    tokenizer = stable_diffusion_tokenizer()
    assert tokenizer.get_vocab_size() == 49408
    assert single_file.prepare(tokenizer, read_json(CONFIGS / "v2-1-base" / single_file.TOKENIZER_JSON), CONFIGS) == 77
    assert tokenize(tokenizer, ["a photo of a cat"], 9)[0].tolist() == [[*ids, 0, 0]]


def sparse(file: Path, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Tensor] | None = None) -> Path:
    """A whole file in float16 of any size that takes no room: its weights are zero but for `values`."""
    header, end, places = {}, 0, {}
    for name, shape in shapes.items():
        places[name], size = end, 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, value in (values or {}).items():
            stream.seek(8 + len(text) + places[name])
            stream.write(value.half().numpy().tobytes())
        stream.truncate(8 + len(text) + end)
    return file


def full_size(family: str) -> dict[str, tuple[int, ...]]:
    with init_empty_weights():
        unet = unet_of(read_json(CONFIGS / family / "unet/config.json"))
    return {unet_names(unet.architecture)(name): tuple(value.shape) for name, value in unet.state_dict().items()}


@pytest.mark.parametrize(
    ("family", "deviation", "predicts", "side"),
    [("v1-5", 1.0, "epsilon", 64), ("v2-1-base", 0.05, "epsilon", 64), ("v2-1-base", 0.2, "v_prediction", 96)],
)
def test_full_size_is_recognised(tmp_path: Path, family: str, deviation: float, predicts: str, side: int) -> None:
    bias = torch.tensor([-deviation, deviation]).repeat(160)
    file = sparse(tmp_path / "model.safetensors", full_size(family), {single_file.V_BIAS: bias})
    shapes, configs = read_header(file)
    assert len(shapes) == 686
    assert configs["unet/config.json"]["cross_attention_dim"] == {"v1-5": 768, "v2-1-base": 1024}[family]
    assert configs["unet/config.json"]["sample_size"] == side
    assert configs["scheduler/scheduler_config.json"]["prediction_type"] == predicts


# ----------------------------------------------------------------------------------------------------------------------
# What is broken or another's is refused by name


XL = "conditioner.embedders.{}.model.transformer.resblocks.9.mlp.c_proj.bias"
OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "SDXL": ({XL.format(1): (4,)}, "got Stable Diffusion XL, expected Stable Diffusion v1 or v2"),
    "its refiner": ({XL.format(0): (4,)}, "got the refiner of Stable Diffusion XL, expected"),
    "its UNet": ({f"{UNET}label_emb.0.0.weight": (4, 4)}, "got a relative of Stable Diffusion XL, expected"),
    "inpainting": (
        {f"{UNET}input_blocks.0.0.weight": (4, 9, 3, 3)},
        "got Stable Diffusion v1 for inpainting, expected",
    ),
    "Flux": ({"double_blocks.0.img_attn.norm.key_norm.scale": (4,)}, "got flux"),
    "a LoRA": ({"lora_unet_mid.lora_down.weight": (4, 4)}, "a LoRA is merged into a checkpoint: --lora FILE"),
    "nothing": ({}, "got no weights, expected a checkpoint"),
    "other text": ({single_file.TEXT_WIDTH: (320, 512)}, "got text of width 512, expected one of [768, 1024]"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_models_are_refused_by_name(tmp_path: Path, case: str) -> None:
    shapes, message = OTHERS[case]
    with pytest.raises(ValueError, match="expected") as error:
        load_single_file(sparse(tmp_path / "model.safetensors", shapes))
    assert message in str(error.value)


BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda w: w.pop(BIAS), f"{BIAS}: got no such weight, expected one of shape [8]"),
    "misshapen": (lambda w: w.update({BIAS: torch.zeros(9)}), f"{BIAS}: got shape [9], expected [8]"),
    "unknown": (
        lambda w: w.update({f"{UNET}new": torch.zeros(1)}),
        f"{UNET}new: got a weight (1 such in all), expected",
    ),
    "of no part": (
        lambda w: w.update({"control.a": torch.zeros(1)}),
        "control.a: got a weight of no known part, expected",
    ),
    "float64": (lambda w: w.update({BIAS: torch.zeros(8).double()}), f"{BIAS}: got torch.float64, expected float16"),
    "no text": (
        lambda w: [w.pop(name) for name in list(w) if name.startswith("cond_stage_model")],
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight: got no such weight, expected",
    ),
}


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_by_name(file: Path, case: str) -> None:
    edit, message = BROKEN[case]
    with pytest.raises(ValueError, match="expected") as error:
        load_single_file(strip(file, edit))
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected a whole safetensors file"):
        load_single_file(file)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_with_the_reason(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(
        ValueError, match=r"got a pickle, expected \.safetensors: a pickle can run code when it is opened"
    ):
        load_single_file(tmp_path / f"model{suffix}")


@pytest.mark.parametrize("metadata", ["{}", "[]", "no JSON"])
def test_metadata_of_another_is_refused(file: Path, metadata: str) -> None:
    with pytest.raises(ValueError, match="got other metadata under 'snapfusion' than we write"):
        load_single_file(strip(file, snapfusion=metadata))
