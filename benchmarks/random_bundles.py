"""Bundles of Stable Diffusion v1.5's size with random weights, written by what `snapfusion export` writes them by.

It does not measure parity, which says nothing of random weights, and holds one network at a time: so it takes half of
the memory. Each network is converted once and is in all its bundles by a hard link.
"""

import gc
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import sd15
from snapfusion import __version__
from snapfusion.bundle import MANIFEST, PARTS, Defaults, Manifest, Part, read_bundle, seal_bundle
from snapfusion.generate import open_networks
from snapfusion.json_file import write_json
from snapfusion.model.architecture import Architecture
from snapfusion.model.configs import config_of_text_encoder, config_of_unet, config_of_vae
from snapfusion.model.parts import Decoder, Unet
from snapfusion.runtimes import openvino
from snapfusion.runtimes.choice import Precision
from snapfusion.runtimes.quantisation import Calibration
from snapfusion.single_file import stable_diffusion_tokenizer
from snapfusion.stages.export.calibrate import PROMPTS, calibrations, record
from snapfusion.stages.export.stage import OUTPUTS
from snapfusion.tokens import tokenize, write_tokenizer

DEFAULTS = Defaults(steps=8, guidance=7.5)
CALIBRATED_BY = 4  # prompts; three show ranges, the fourth is what a user's export would spare layers by
SPARED_BELOW_DB = 0.0  # no layer: which of them hurt, random weights do not say


@dataclass(frozen=True)
class Model:
    """What a bundle is made of."""

    unet: str
    decoder: sd15.Decoder
    weights: Literal["fp16", "w8a8"]

    @property
    def stored(self) -> dict[Part, Precision]:
        """How `snapfusion export --precision` stores each part: no text encoder is rounded but for its weights."""
        text: Precision = "int8" if self.weights == "w8a8" else self.weights
        return {"text_encoder": text, "unet": self.weights, "vae_decoder": self.weights}


@dataclass(frozen=True)
class Bundles:
    """In a folder, made when they are first asked for."""

    folder: Path
    size: sd15.Size
    architectures: Mapping[str, Architecture]
    """Of UNets, by name."""

    def __call__(self, model: Model, genai: bool = False) -> Path:
        """The folder of a bundle; with `genai` it has OpenVINO's own tokenizer."""
        unet = self._names(model)["unet"]
        out = self.folder / "bundles" / f"{unet}-{model.decoder}{'-genai' if genai else ''}"
        if (out / MANIFEST).is_file():
            return out
        found = self._parts(model)
        work = _fresh(out.with_name(f"{out.name}.part"))
        for part, folder in found.items():
            shutil.copytree(folder, work / part, copy_function=os.link)
        write_tokenizer(stable_diffusion_tokenizer(), sd15.LENGTH, work / "tokenizer")
        if genai:
            openvino.export_tokenizer(work / "tokenizer")
        write_json(work / "scheduler" / "scheduler_config.json", sd15.schedule().to_config())
        write_json(work / "model_index.json", _index())
        source = {"weights": "random", "size": self.size, "unet": unet, "decoder": model.decoder}
        seal_bundle(work, Manifest(out.name, __version__, DEFAULTS, {"openvino": model.stored}, source=source))
        shutil.rmtree(out, ignore_errors=True)
        work.rename(out)
        return out

    def _parts(self, model: Model) -> dict[Part, Path]:
        """A folder for each network, converted where it is not there yet."""
        folders: dict[Part, Path] = {part: self.folder / "parts" / name for part, name in self._names(model).items()}
        missing = [part for part in PARTS if not folders[part].is_dir()]
        calibration = self._calibrations(model) if missing and model.weights == "w8a8" else {}
        for part in missing:
            work = _fresh(folders[part].with_name(f"{folders[part].name}.part"))
            module, example, config = self._network(model, part)
            write_json(work / "config.json", config)
            with warnings.catch_warnings(action="ignore"), torch.no_grad():  # tracing takes sizes for fixed: they are
                openvino.export(module, example, OUTPUTS[part], work, model.stored[part], calibration.get(part))
            del module
            gc.collect()  # before the next one comes
            work.rename(folders[part])
        return folders

    def _names(self, model: Model) -> dict[Part, str]:
        """What each network is called. A UNet's name says which architecture it is, not only how it is called here."""
        blocks = json.dumps(self.architectures[model.unet].to_dict()).encode()
        unet = f"{model.unet}-{hashlib.sha256(blocks).hexdigest()[:8]}"
        names: dict[Part, str] = {"text_encoder": "text", "unet": unet, "vae_decoder": f"{model.decoder}-decoder"}
        return {part: f"{name}-{model.stored[part]}" for part, name in names.items()}

    def _calibrations(self, model: Model) -> Mapping[Part, Calibration]:
        """What the same networks meet in bfloat16."""
        bundle = read_bundle(self(replace(model, weights="fp16")))
        recorded = record(bundle, open_networks(bundle), PROMPTS[:CALIBRATED_BY])
        return calibrations(recorded, SPARED_BELOW_DB)

    def _network(self, model: Model, part: Part) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, Any]]:
        """A network as bundles call it, an example of its inputs, and its config."""
        torch.manual_seed(0)
        architecture = self.architectures[model.unet]
        if part == "text_encoder":
            network = sd15.text_encoder(self.size)
            tokens, _ = tokenize(stable_diffusion_tokenizer(), ["", "a red fox"], sd15.LENGTH)
            return network, {"input_ids": torch.from_numpy(tokens)}, config_of_text_encoder(network)
        latent, embedding = sd15.inputs(self.size)
        if part == "vae_decoder":
            vae = sd15.autoencoder(self.size, model.decoder)
            return Decoder(vae), {"latent_sample": latent}, config_of_vae(vae)
        unet = sd15.unet(self.size, architecture)
        example = {"sample": latent, "timestep": torch.tensor([1]), "encoder_hidden_states": embedding}
        return Unet(unet), example, config_of_unet(unet)


def _index() -> dict[str, Any]:
    """What `Text2ImagePipeline` and diffusers know a pipeline by."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
