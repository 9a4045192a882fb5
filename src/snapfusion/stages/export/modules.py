"""The three networks of a checkpoint as a bundle's networks are called: arguments by name, one tensor out."""

from torch import Tensor, nn

from snapfusion.checkpoint import Checkpoint
from snapfusion.model.decoder import PatchAutoencoderKL


class Unet(nn.Module):
    """`sample` `[B, C, h, w]`, `timestep` `[1]`, `encoder_hidden_states` `[B, L, D]` to the prediction, as `sample`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class Decoder(nn.Module):
    """`latent_sample` `[B, C, h, w]`, its scaling taken off, to the image `[B, 3, H, W]`, about -1..1."""

    def __init__(self, vae: PatchAutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.vae.decode(latent_sample, return_dict=False)[0]


def modules(checkpoint: Checkpoint) -> dict[str, nn.Module]:
    """The networks by the name of their part."""
    return {
        "text_encoder": checkpoint.text_encoder,
        "unet": Unet(checkpoint.unet),
        "vae_decoder": Decoder(checkpoint.vae),
    }
