"""What config.json says of each network: a network without weights from it, and it from a network.

Written as diffusers and transformers write it wherever the class is theirs, so that they can read it.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

import transformers

from snapfusion.model.architecture import Architecture
from snapfusion.model.decoder import OWN_FIELDS, PatchAutoencoderKL
from snapfusion.model.text import TextEncoder
from snapfusion.model.unet import ElasticUNet

# Only what shapes the network is read: no code, kernels, quantisation or dtype of the file's choosing.
UNREAD = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "dtype", "torch_dtype")


def unet_of(config: Mapping[str, Any]) -> ElasticUNet:
    """The UNet of ours or of diffusers' `UNet2DConditionModel`."""
    return cast(ElasticUNet, ElasticUNet.from_config(dict(config)))


def vae_of(config: Mapping[str, Any]) -> PatchAutoencoderKL:
    """The autoencoder of ours or of diffusers' `AutoencoderKL`."""
    return cast(PatchAutoencoderKL, PatchAutoencoderKL.from_config(dict(config)))


def text_model_of(config: Mapping[str, Any]) -> transformers.PreTrainedModel:
    """The text encoder, of the class of transformers that the config names."""
    name = config["architectures"][0]
    network = getattr(transformers, name)
    if not (isinstance(network, type) and issubclass(network, transformers.PreTrainedModel)):
        raise ValueError(f"got architecture {name}, expected a text encoder of transformers")
    fields = {name: value for name, value in config.items() if name not in UNREAD}
    return network(cast(Any, network).config_class.from_dict(fields))


def config_of_unet(unet: ElasticUNet) -> dict[str, Any]:
    """One of Stable Diffusion's architecture is described as diffusers' own class."""
    config = _config_of(unet)
    if is_stable_diffusions(unet):
        del config["architecture"]
        # diffusers' name for the number of heads, wrong from the start
        config["attention_head_dim"] = config.pop("num_attention_heads")
        widths = config["block_out_channels"] = unet.architecture.widths
        config["layers_per_block"] = len(unet.architecture.down[0])
        config["down_block_types"] = ["CrossAttnDownBlock2D"] * (len(widths) - 1) + ["DownBlock2D"]
        config["up_block_types"] = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (len(widths) - 1)
        config["_class_name"] = "UNet2DConditionModel"
    return config


def config_of_vae(vae: PatchAutoencoderKL) -> dict[str, Any]:
    """One that is diffusers' `AutoencoderKL` is described as that."""
    config = _config_of(vae)
    if vae.is_diffusers:
        config = {name: value for name, value in config.items() if name not in OWN_FIELDS}
        config["_class_name"] = "AutoencoderKL"
    return config


def config_of_text_encoder(text_encoder: TextEncoder) -> dict[str, Any]:
    """As transformers describes its model."""
    model = text_encoder.model
    return {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}


def is_stable_diffusions(unet: ElasticUNet) -> bool:
    """Whether diffusers' `UNet2DConditionModel` is this very network."""
    return unet.architecture == Architecture.sd15(unet.architecture.widths)


def _config_of(network: ElasticUNet | PatchAutoencoderKL) -> dict[str, Any]:
    """What config.json is to say, but not the folder that the network once was loaded from."""
    return {name: value for name, value in json.loads(network.to_json_string()).items() if name != "_name_or_path"}
