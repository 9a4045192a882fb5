"""The UNet and the image decoder as every runtime calls them: arguments by name, one tensor out.

A bundle's third network, the text encoder, is called so as it is (`snapfusion.model.text`).
"""

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from snapfusion.model.decoder import PatchAutoencoderKL


class Unet(nn.Module):
    """`sample` `[B, C, h, w]`, `timestep` `[1]`, `encoder_hidden_states` `[B, L, D]` to the prediction, as `sample`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class Decoder(nn.Module):
    """`latent_sample` `[B, C, h, w]`, its scaling taken off, to the image `[B, 3, H, W]`, about -1..1.

    It is what an autoencoder decodes with, under the same names of weights; the encoder is no part of it.
    """

    def __init__(self, vae: PatchAutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv or nn.Identity()  # it has none where use_post_quant_conv is false
        self.decoder = vae.decoder
        self.patch_size = vae.patch_size

    def forward(self, latent_sample: Tensor) -> Tensor:
        return pixel_shuffle(self.decoder(self.post_quant_conv(latent_sample)), self.patch_size)
