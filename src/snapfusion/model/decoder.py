"""The autoencoder: diffusers' `AutoencoderKL`, with pixels folded into channels before its first layer.

Why fold: at 256 px the widest picture levels of an `AutoencoderKL` cost most of its time and hold almost none of its
weights. Folding each `patch_size` x `patch_size` square of pixels into channels (`pixel_unshuffle`) starts the network
one or two levels lower, and the blocks, names and weights stay diffusers' own. With `patch_size=1` nothing is folded
and the class *is* `AutoencoderKL`.
"""

from typing import Any, cast

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class PatchAutoencoderKL(AutoencoderKL):
    """`AutoencoderKL` on folded pixels.

    Images are `[B, 3, H, W]` in -1..1 and latents `[B, C, H/f, W/f]`, unscaled, as in diffusers; the downsampling
    factor f is `patch_size * 2 ** (len(block_out_channels) - 1)`.
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
    ) -> None:
        if patch_size < 1:
            raise ValueError(f"got patch_size {patch_size}, expected at least 1; 1 folds nothing")
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
