"""The autoencoder: diffusers' `AutoencoderKL`, with pixels folded into channels before its first layer.

Why fold: at 256 px the widest picture levels of an `AutoencoderKL` cost most of its time and hold almost none of its
weights. Folding each `patch_size` x `patch_size` square of pixels into channels (`pixel_unshuffle`) starts the network
one or two levels lower, and the blocks, names and weights stay diffusers' own. With `patch_size=1` nothing is folded
and the class *is* `AutoencoderKL`.

A decoder may also differ from what its encoder would have beside it: narrower, or diffusers' `DecoderTiny`. Two fields
of the config say so, and a file without them is a plain autoencoder.
"""

from typing import Any, Literal, cast

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput, DecoderTiny
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

DecoderClass = Literal["Decoder", "DecoderTiny"]
OWN_FIELDS = ("patch_size", "decoder_class", "decoder_block_out_channels")
"""What `PatchAutoencoderKL`'s config has beyond `AutoencoderKL`'s."""


class PatchAutoencoderKL(AutoencoderKL):
    """`AutoencoderKL` on folded pixels.

    Images are `[B, 3, H, W]` in -1..1 and latents `[B, C, H/f, W/f]`, unscaled, as in diffusers; the downsampling
    factor f is `patch_size * 2 ** (len(block_out_channels) - 1)`.

    Three fields of the config are not diffusers':
        patch_size: side of the squares of pixels that are folded into channels; 1 folds nothing.
        decoder_class: which class of diffusers decodes: `Decoder`, an `AutoencoderKL`'s, or `TinyDecoder` below.
        decoder_block_out_channels: the decoder's own widths, finest level first, as many as `block_out_channels`,
            which then are the encoder's alone; None for the encoder's.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        patch_size: int = 1,
        decoder_class: DecoderClass = "Decoder",
        decoder_block_out_channels: tuple[int, ...] | None = None,
    ) -> None:
        if patch_size < 1:
            raise ValueError(f"got patch_size {patch_size}, expected at least 1; 1 folds nothing")
        widths = tuple(decoder_block_out_channels or block_out_channels)
        if len(widths) != len(block_out_channels):
            raise ValueError(
                f"got decoder_block_out_channels {widths}, expected as many as block_out_channels {block_out_channels}"
            )
        # `register_to_config` has stored the arguments as given, image channels unfolded, so the file says 3.
        # diffusers types its tuples as of one element.
        cast(Any, super()).__init__(
            in_channels=in_channels * patch_size**2,
            out_channels=out_channels * patch_size**2,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )
        self.register_to_config(in_channels=in_channels, out_channels=out_channels)
        self.patch_size = patch_size
        self.decoder_widths = widths
        if decoder_class == "DecoderTiny":
            self.decoder = TinyDecoder(latent_channels, out_channels * patch_size**2, widths, scaling_factor)
        elif decoder_class != "Decoder":
            raise ValueError(f"got decoder_class {decoder_class!r}, expected Decoder or DecoderTiny")
        elif widths != tuple(block_out_channels):
            self.decoder = Decoder(
                in_channels=latent_channels,
                out_channels=out_channels * patch_size**2,
                up_block_types=up_block_types,
                block_out_channels=widths,
                layers_per_block=layers_per_block,
                norm_num_groups=norm_num_groups,
                act_fn=act_fn,
                mid_block_add_attention=mid_block_add_attention,
            )

    @property
    def is_diffusers(self) -> bool:
        """Whether diffusers' `AutoencoderKL` is this very network."""
        config = cast(Any, self.config)
        full = config.decoder_class == "Decoder" and self.decoder_widths == tuple(config.block_out_channels)
        return full and self.patch_size == 1

    @property
    def factor(self) -> int:
        """How many pixels one latent position covers along each side."""
        return self.patch_size * 2 ** (len(cast(Any, self.config).block_out_channels) - 1)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Image `[B, 3, H, W]` in -1..1 to the distribution of its latent `[B, C, H/f, W/f]`."""
        if self.patch_size == 1:
            return super().encode(x, return_dict=return_dict)
        return cast(AutoencoderKLOutput, super().encode(pixel_unshuffle(x, self.patch_size), return_dict=return_dict))

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Latent `[B, C, h, w]`, unscaled, to image `[B, 3, h*f, w*f]`, about -1..1 (not clamped)."""
        folded = cast(DecoderOutput, cast(Any, super()).decode(z)).sample
        image = pixel_shuffle(folded, self.patch_size)
        return DecoderOutput(sample=image) if return_dict else (image,)


class TinyDecoder(DecoderTiny):
    """diffusers' `DecoderTiny`, that of `AutoencoderTiny` (TAESD), with a level for each of the autoencoder's.

    Every level has three blocks, the finest one. So with Stable Diffusion's four levels it is `AutoencoderTiny`'s own,
    names of weights included; and where pixels are folded, fewer levels follow the smaller factor.
    """

    def __init__(self, latent_channels: int, out_channels: int, widths: tuple[int, ...], scaling_factor: float) -> None:
        """`widths` finest level first, as everywhere here. Latents are multiplied by `scaling_factor`."""
        super().__init__(
            in_channels=latent_channels,
            out_channels=out_channels,
            num_blocks=(3,) * (len(widths) - 1) + (1,),
            block_out_channels=widths[::-1],
            upsampling_scaling_factor=2,
            act_fn="relu",
            upsample_fn="nearest",
        )
        self.scaling_factor = scaling_factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Latent `[B, C, h, w]`, unscaled, to the (folded) image, about -1..1."""
        return super().forward(x * self.scaling_factor)  # it clamps softly at +-3, and so expects unit deviation
