"""The three networks of a text-to-image model as sketches: of a checkpoint, or of Stable Diffusion v1.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from snapfusion.checkpoint import Checkpoint
from snapfusion.model.architecture import Architecture
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.parts import Decoder, Unet
from snapfusion.model.text import TextEncoder
from snapfusion.model.unet import ElasticUNet
from snapfusion.stages.profile.sketch import Sketch, blank


@dataclass(frozen=True)
class Networks:
    """A text-to-image model without weights."""

    text_encoder: TextEncoder
    unet: ElasticUNet
    vae: PatchAutoencoderKL
    length: int
    """Tokens of a prompt."""

    def sketches(self) -> dict[str, Sketch]:
        """By the names of a bundle's parts."""
        tokens = blank(self.length, dtype=torch.int64)
        latent = blank(cast(Any, self.vae.config).latent_channels, *(self.unet.config["sample_size"],) * 2)
        return {
            "text_encoder": Sketch(self.text_encoder, {"input_ids": tokens}),
            "unet": unet_sketch(self.unet, self.length),
            "vae_decoder": Sketch(Decoder(self.vae), {"latent_sample": latent}),
        }

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Networks:
        """A checkpoint's, whose own networks lose their weights by this."""
        text_encoder, unet, vae = checkpoint.text_encoder, checkpoint.unet, checkpoint.vae
        for network in (text_encoder, unet, vae):
            cast(nn.Module, network).to("meta")
        return cls(text_encoder, unet, vae, checkpoint.length)

    @classmethod
    def sd15(cls) -> Networks:
        """Stable Diffusion v1.5's at 512x512: CLIP ViT-L/14's text tower, 77 tokens, latents [4, 64, 64]."""
        clip = CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
        with torch.device("meta"):
            vae = PatchAutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                sample_size=512,
            )
            return cls(TextEncoder(CLIPTextModel(clip)), ElasticUNet(Architecture.sd15()), vae, length=77)


def unet_sketch(unet: ElasticUNet, length: int) -> Sketch:
    """A whole UNet, weightless."""
    side = unet.config["sample_size"]
    example: Mapping[str, Tensor] = {
        "sample": blank(unet.config["in_channels"], side, side),
        "timestep": torch.empty(1, device="meta"),
        "encoder_hidden_states": blank(length, unet.config["cross_attention_dim"]),
    }
    return Sketch(Unet(unet), example)


def unet_of(unet: ElasticUNet, architecture: Architecture) -> ElasticUNet:
    """The weightless UNet of another architecture, otherwise like `unet`."""
    with torch.device("meta"):
        return ElasticUNet.from_config({**unet.config, "architecture": architecture.to_dict()})
