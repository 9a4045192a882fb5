"""A checkpoint to a bundle: convert the three networks, hold them against torch, seal what passes."""

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from snapfusion import __version__
from snapfusion.bundle import MANIFEST, PARTS, Defaults, Manifest, Networks, read_bundle, seal_bundle
from snapfusion.checkpoint import Checkpoint, hash_of, load_checkpoint, load_vae
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.generate import open_networks
from snapfusion.json_file import read_json, write_json
from snapfusion.runtimes import openvino
from snapfusion.runtimes.torch import Network
from snapfusion.settings import settings_for
from snapfusion.stages.export.modules import modules
from snapfusion.stages.export.parity import check, measure
from snapfusion.tokens import tokenize, write_tokenizer

OUTPUTS = {"text_encoder": "last_hidden_state", "unet": "out_sample", "vae_decoder": "sample"}
# Subjects and styles that any text-to-image model knows something of.
PROMPTS = (
    "a red fox, 3D render",
    "a blue whale, flat",
    "a green apple, cartoon",
    "a cat, black silhouette",
    "a slice of pizza, 3D render",
    "a sailing boat, flat",
    "a smiling face, cartoon",
    "a bicycle, black silhouette",
    "a yellow flower, 3D render",
    "a castle, flat",
    "an owl, cartoon",
    "a pine tree, black silhouette",
    "a cup of coffee, 3D render",
    "a rainbow over clouds, flat",
    "a dragon, cartoon",
    "a violin, black silhouette",
)


@dataclass(frozen=True)
class Config:
    """What to pack, and how the bundle draws unless told otherwise."""

    name: str | None = None
    """What the bundle is called; by default as the checkpoint's folder."""
    text_encoder: openvino.Weights = "int8"
    """How the weights of the text encoder are stored."""
    unet: openvino.Weights = "int8"
    """How the weights of the UNet are stored."""
    vae_decoder: openvino.Weights = "int8"
    """How the weights of the image decoder are stored."""
    steps: int = 50
    """Steps of the sampler."""
    guidance: float = 7.5
    """How closely to follow the prompt."""
    scheduler: Scheduler = "ddim"
    """The sampler."""
    prompts: tuple[str, ...] = PROMPTS
    """What is drawn by torch and by the bundle to hold one against the other."""


@dataclass(frozen=True)
class Result:
    """The bundle, and what manifest.json says was measured on it."""

    bundle: Path
    figures: Mapping[str, Any]

    def describe(self) -> str:
        """The parity with torch, a line for each part."""
        parity = self.figures["parity"]
        parts = [f"{part:<14}{parity[part]['psnr_db']:>7.1f} dB" for part in PARTS]
        pictures = (
            f"{'pictures':<14}{parity['pictures']['median_psnr_db']:>7.1f} dB, median of {parity['pictures']['n']}"
        )
        return "\n".join([f"{self.bundle}, against {parity['against']} in {parity['computed_in']}:", *parts, pictures])


def run(config: Config, checkpoint: Path, out: Path, decoder: Path | None = None) -> Result:
    """Pack the checkpoint in folder `checkpoint` into a bundle in folder `out`.

    `decoder` is a checkpoint whose image decoder is packed in place of this one's. A bundle that was made of the same
    is left as it is. Raises `ValueError` where `out` holds anything else, or where the bundle is further from torch
    than `parity` allows: then nothing is written.
    """
    decoder = decoder or checkpoint
    hashes = {"checkpoint": hash_of(checkpoint)} | ({"decoder": hash_of(decoder)} if decoder != checkpoint else {})
    source = json.loads(json.dumps({**hashes, "export": asdict(config)}))
    if out.exists():
        if not (out / MANIFEST).is_file() or read_json(out / MANIFEST).get("source") != source:
            raise ValueError(f"got --out {out}, which holds something else; remove it or name a new folder")
        return Result(out, read_bundle(out).manifest.figures)
    manifest = Manifest(
        name=config.name or checkpoint.resolve().name,
        snapfusion=__version__,
        defaults=Defaults(config.steps, config.guidance, config.scheduler),
        weights={part: getattr(config, part) for part in PARTS},
        licences=_licences(checkpoint),
        source=source,
    )
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        figures = _pack(config, manifest, checkpoint, decoder, work)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Result(out, figures)


def _pack(config: Config, manifest: Manifest, checkpoint: Path, decoder: Path, out: Path) -> dict[str, Any]:
    """Write the bundle, measure it, seal it; returns the figures."""
    loaded = load_checkpoint(checkpoint)
    if decoder != checkpoint:
        loaded = replace(loaded, vae=load_vae(decoder))
    parts = modules(loaded)
    configs = {"text_encoder": checkpoint / "text_encoder", "unet": checkpoint / "unet", "vae_decoder": decoder / "vae"}
    _convert(config, loaded, parts, configs, out)
    shutil.copyfile(checkpoint / "model_index.json", out / "model_index.json")
    seal_bundle(out, manifest)  # to be opened and drawn with, as anybody would

    bundle = read_bundle(out)
    right = Networks(**{part: Network(module) for part, module in parts.items()})
    pictures = [one for prompt in config.prompts for one in settings_for(bundle, prompt, seed=0)]
    parity = measure(bundle, open_networks(bundle, config.guidance != 1), right, pictures)
    check(parity, manifest.weights)

    figures = {"parity": {"against": "torch float32", "computed_in": openvino.precision(), **parity}}
    seal_bundle(out, replace(manifest, figures=figures))
    return figures


def _convert(
    config: Config,
    loaded: Checkpoint,
    parts: Mapping[str, torch.nn.Module],
    configs: Mapping[str, Path],
    out: Path,
) -> None:
    """Write the networks, their config.json (`configs` are the folders that have them), tokenizer and scheduler."""
    for part, example in _examples(loaded).items():
        # Tracing takes sizes for fixed, which here they are; gradients would take four times the memory.
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            openvino.export(parts[part], example, OUTPUTS[part], out / part, getattr(config, part))
    for part, folder in configs.items():
        fields = read_json(folder / "config.json")
        fields.pop("_name_or_path", None)  # where somebody once loaded it from
        write_json(out / part / "config.json", fields)
    write_tokenizer(loaded.tokenizer, loaded.length, out / "tokenizer")
    write_json(out / "scheduler" / "scheduler_config.json", loaded.schedule.to_config())


def _examples(checkpoint: Checkpoint) -> dict[str, dict[str, torch.Tensor]]:
    """Inputs for each network; two rows, so that no batch of one is taken for a fixed size."""
    unet: Any = checkpoint.unet.config
    tokens, _ = tokenize(checkpoint.tokenizer, ["", "a red fox"], checkpoint.length)
    latent = torch.zeros(2, unet.in_channels, unet.sample_size, unet.sample_size)
    embedding = torch.zeros(2, checkpoint.length, checkpoint.text_encoder.width)
    return {
        "text_encoder": {"input_ids": torch.from_numpy(tokens)},
        "unet": {"sample": latent, "timestep": torch.tensor([1]), "encoder_hidden_states": embedding},
        "vae_decoder": {"latent_sample": latent},
    }


def _licences(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint says of its parts' and its data's licences, if it does."""
    file = checkpoint / "licences.json"
    return read_json(file) if file.exists() else {}
