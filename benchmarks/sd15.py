"""Stable Diffusion v1.5 with random weights, at its size or tiny: what benchmarks run where no checkpoint can be had.

Weights are as their classes draw them, which changes no time.
"""

from typing import Any, Literal

import torch
from torch import nn

from snapfusion.bundle import Part
from snapfusion.checkpoint import Checkpoint
from snapfusion.diffusion.schedule import Schedule
from snapfusion.json_file import read_json
from snapfusion.model.architecture import Architecture
from snapfusion.model.configs import text_model_of, unet_of, vae_of
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.text import TextEncoder
from snapfusion.model.unet import ElasticUNet
from snapfusion.single_file import CONFIGS, SCHEDULER_JSON, TEXT_JSON, UNET_JSON, VAE_JSON, stable_diffusion_tokenizer
from snapfusion.stages.distill_decoder.students import half, tiny
from snapfusion.stages.evaluate.cost import Cost
from snapfusion.stages.profile.networks import Networks

Size = Literal["sd15", "tiny"]
Decoder = Literal["full", "half", "tiny"]

LENGTH = 77  # tokens
FAMILY = CONFIGS / "v1-5"
TINY: dict[str, dict[str, Any]] = {
    UNET_JSON: {
        "block_out_channels": [16, 32, 64, 64],
        "norm_num_groups": 8,
        "sample_size": 16,
        "cross_attention_dim": 32,
    },
    VAE_JSON: {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4},
    TEXT_JSON: {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def checkpoint_of(size: Size, seed: int) -> Checkpoint:
    """All of it, with the weights that torch starts a training from."""
    torch.manual_seed(seed)
    return Checkpoint(
        stable_diffusion_tokenizer(), LENGTH, text_encoder(size), unet(size), autoencoder(size), schedule()
    )


def text_encoder(size: Size) -> TextEncoder:
    """CLIP's."""
    return TextEncoder(text_model_of(_config(TEXT_JSON, size))).eval()


def unet(size: Size, architecture: Architecture | None = None) -> ElasticUNet:
    """The UNet, or one of another architecture of the same widths."""
    config = _config(UNET_JSON, size)
    if architecture is None:
        return unet_of(config).eval()
    with torch.device("meta"):
        whole = unet_of(config)
    return unet_of({**whole.config, "architecture": architecture.to_dict()}).eval()


def autoencoder(size: Size, decoder: Decoder = "full") -> PatchAutoencoderKL:
    """The autoencoder, or one with another decoder."""
    full = vae_of(_config(VAE_JSON, size)).eval()
    return {"full": lambda: full, "half": lambda: half(full, "magnitude", 0), "tiny": lambda: tiny(full, 0)}[decoder]()


def schedule() -> Schedule:
    """The noise schedule."""
    return Schedule.from_config(read_json(FAMILY / SCHEDULER_JSON))


def widths(size: Size) -> tuple[int, ...]:
    """Channels of the UNet's levels."""
    return tuple(_config(UNET_JSON, size)["block_out_channels"])


def side(size: Size) -> int:
    """Pixels of a picture's."""
    return _config(UNET_JSON, size)["sample_size"] * 2 ** (len(_config(VAE_JSON, size)["block_out_channels"]) - 1)


def inputs(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Two latents and two embeddings, all zeros."""
    config = _config(UNET_JSON, size)
    latent = torch.zeros(2, config["in_channels"], config["sample_size"], config["sample_size"])
    return latent, torch.zeros(2, LENGTH, config["cross_attention_dim"])


def costs_of(size: Size, architecture: Architecture, decoder: Decoder) -> dict[Part, Cost]:
    """Parameters and multiply-accumulates of each network, counted without weights; no bytes."""
    vae = autoencoder(size, decoder)
    nn.Module.to(vae, "meta")
    with torch.device("meta"):
        networks = Networks(text_encoder(size), unet(size, architecture), vae, LENGTH)
    return {part: Cost(sketch.parameters, 0, sketch.macs()) for part, sketch in networks.sketches().items()}


def _config(name: str, size: Size) -> dict[str, Any]:
    return read_json(FAMILY / name) | (TINY[name] if size == "tiny" else {})
