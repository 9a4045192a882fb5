"""The three networks of a checkpoint as a bundle's networks are called."""

from torch import nn

from snapfusion.checkpoint import Checkpoint
from snapfusion.model.parts import Decoder, Unet


def modules(checkpoint: Checkpoint) -> dict[str, nn.Module]:
    """The networks by the name of their part."""
    return {
        "text_encoder": checkpoint.text_encoder,
        "unet": Unet(checkpoint.unet),
        "vae_decoder": Decoder(checkpoint.vae),
    }
