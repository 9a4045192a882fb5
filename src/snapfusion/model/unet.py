"""The UNet of an `Architecture`, built from diffusers' blocks under diffusers' names.

With every block there it is `UNet2DConditionModel`: the same state dict, the same output to the last bit. A block that
was removed has no weights and leaves nothing in an exported graph; one that is there can be switched off for a call.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, Self, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from snapfusion.model.architecture import Architecture
from snapfusion.model.block import Block
from snapfusion.model.diffusers_config import elastic_config
from snapfusion.model.level import Level, make_identity

NORM_EPS = 1e-5  # Stable Diffusion's; diffusers' ResNets alone would take 1e-6
BLOCK_NAME = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions)\.\d+(\.copies\.\d+)?")


class ElasticUNet(ModelMixin, AttentionMixin, ConfigMixin):
    """A Stable Diffusion UNet of any architecture; it loads, saves and runs in pipelines as diffusers' own does.

    `num_attention_heads` counts heads, for all levels or per level (Stable Diffusion's config calls this number
    attention_head_dim); the other arguments mean what they mean in `UNet2DConditionModel`. The defaults are Stable
    Diffusion v1.5's. config.json holds the architecture as JSON.

    Train what `for_training` returns.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["BasicTransformerBlock", "ResnetBlock2D"]  # noqa: RUF012 (diffusers reads a list)
    _skip_layerwise_casting_patterns = ["norm"]  # noqa: RUF012
    _repeated_blocks = ["BasicTransformerBlock"]  # noqa: RUF012

    mid_block: Level

    @register_to_config
    def __init__(
        self,
        architecture: Architecture | Mapping[str, Any],
        *,
        sample_size: int | None = 64,
        in_channels: int = 4,
        out_channels: int = 4,
        cross_attention_dim: int = 768,
        num_attention_heads: int | Sequence[int] = 8,
        norm_num_groups: int = 32,
        use_linear_projection: bool = False,
        upcast_attention: bool = False,
        time_cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(architecture, Architecture):
            architecture = Architecture.from_dict(architecture)
        # diffusers takes what was passed by position for a default, and from_config forgets defaults: there are none.
        self.register_to_config(architecture=architecture.to_dict(), _use_default_values=[])
        self.architecture = architecture
        self.heads = _heads_per_level(num_attention_heads, architecture.widths)
        blocks, width, depth = architecture.blocks(), architecture.widths[0], len(architecture.down)
        self.removable = frozenset(block.name for block in blocks if block.removable)

        self.conv_in = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, 4 * width, cond_proj_dim=time_cond_proj_dim)
        self.down_blocks, self.up_blocks = nn.ModuleDict(), nn.ModuleDict()
        for stage, slot in {slot.stage: slot for slot in architecture.slots()}.items():
            level = Level(stage, (block for block in blocks if block.stage == stage), self._build)
            side, _, number = stage.partition(".")
            if side == "mid_block":
                self.mid_block = level
            elif side == "down_blocks":
                self.down_blocks[number] = level
                if slot.level + 1 < depth:
                    level.downsamplers.append(Downsample2D(slot.width, True, slot.width, name="op"))
            else:
                self.up_blocks[number] = level
                if slot.level > 0:
                    level.upsamplers.append(Upsample2D(slot.width, True, out_channels=slot.width))
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, width, eps=NORM_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, out_channels, kernel_size=3, padding=1)

    def _build(self, block: Block) -> nn.Module:
        groups = self.config["norm_num_groups"]
        if block.kind == "resnet":
            return ResnetBlock2D(
                in_channels=block.width_in + block.skip_width,
                out_channels=block.width,
                temb_channels=4 * self.architecture.widths[0],
                groups=groups,
                eps=NORM_EPS,
            )
        heads = self.heads[-1 if block.stage == "mid_block" else block.level]
        if block.width % heads:
            raise ValueError(
                f"got {heads} attention heads in {block.name}, expected a divisor of its width {block.width}"
            )
        return Transformer2DModel(
            heads,
            block.width // heads,
            in_channels=block.width,
            norm_num_groups=groups,
            cross_attention_dim=self.config["cross_attention_dim"],
            use_linear_projection=self.config["use_linear_projection"],
            upcast_attention=self.config["upcast_attention"],
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        off: Collection[str] = (),
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: None = None,
        added_cond_kwargs: None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict from a noisy latent.

        Args:
            sample: the noisy latent [B, in_channels, H, W].
            timestep: the checkpoint's step, one number or [B].
            encoder_hidden_states: the prompts' embedding [B, L, cross_attention_dim].
            off: names of blocks that the identity replaces in this call (Eq. 5), out of `self.removable`: the function
                is then that of `self.without(*off)`. Under DDP this needs `find_unused_parameters=True`.
            timestep_cond: an embedding that is added to the time's [B, time_cond_proj_dim].
            cross_attention_kwargs, added_cond_kwargs: pipelines pass them; only None is understood.
            return_dict: whether to return an object with `sample`, or a tuple.

        Returns:
            The prediction [B, out_channels, H, W].
        """
        off = frozenset(off)
        if not off <= self.removable:
            raise ValueError(f"got {sorted(off - self.removable)} to switch off, expected names out of unet.removable")
        if cross_attention_kwargs or added_cond_kwargs:
            raise ValueError(
                "got cross_attention_kwargs or added_cond_kwargs, expected none: merge adapters beforehand"
            )
        steps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        time = self.time_embedding(self.time_proj(steps).to(sample.dtype), timestep_cond)
        given = (time, encoder_hidden_states, off)
        # Where a side cannot be halved evenly on the way down, the way up has to be told the size.
        even = all(side % 2 ** (len(self.down_blocks) - 1) == 0 for side in sample.shape[-2:])

        hidden = self.conv_in(sample)
        skips = [hidden]
        for level, positions in zip(_levels(self.down_blocks), self.architecture.down, strict=True):
            for index, position in enumerate(positions):
                hidden = level(index, hidden, None, *given)
                if position.skip:
                    skips.append(hidden)
            for downsampler in level.downsamplers:
                hidden = downsampler(hidden)
                skips.append(hidden)
        for index, _ in enumerate(self.architecture.mid):
            hidden = self.mid_block(index, hidden, None, *given)
        for level, positions in zip(_levels(self.up_blocks), self.architecture.up, strict=True):
            for index, position in enumerate(positions):
                hidden = level(index, hidden, skips.pop() if position.skip else None, *given)
            for upsampler in level.upsamplers:
                hidden = upsampler(hidden, None if even else skips[-1].shape[-2:])
        prediction = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def for_training(self) -> Self:
        """The network in training mode, where it lies; on a CPU with attention as plain matrix products.

        Their backward pass in bf16 is faster there than that of fused attention. A GPU, which is the other way about,
        would have to hold every row of scores.
        """
        if self.device.type == "cpu":
            self.set_attn_processor(AttnProcessor())
        return self.train()

    def evolve(self, architecture: Architecture, start: Literal["identity", "same"] = "identity") -> Self:
        """The network of another architecture, with a copy of this one's weights.

        `start` is how blocks begin that are copied now: as the identity (last projection zero), which leaves the
        function as it is, or with the weights of their original. Raises `ValueError` for blocks that are not here.
        """
        here = {block.name for block in self.architecture.blocks()}
        origins = {block.name: block.name if block.name in here else block.original for block in architecture.blocks()}
        missing = sorted(set(origins.values()) - here)
        if missing or architecture.widths != self.architecture.widths:
            raise ValueError(
                f"got an architecture of widths {architecture.widths} with {missing} that this network does not have, "
                f"expected widths {self.architecture.widths}, this network's blocks and copies of them"
            )
        evolved = self._rebuild(architecture, origins)
        if start == "identity":
            for name in origins.keys() - here:
                make_identity(evolved.get_submodule(name))
        return evolved

    def without(self, *names: str) -> Self:
        """The network that remains when blocks go for good, with a copy of its weights.

        Behind an original that goes, its first copy takes over its place and its name.
        """
        smaller = self.architecture.without(*names)
        kept: dict[str, list[str]] = {}
        for block in self.architecture.blocks():
            if block.name not in names:
                kept.setdefault(block.original, []).append(block.name)
        return self._rebuild(smaller, {block.name: kept[block.original][block.copy] for block in smaller.blocks()})

    def _rebuild(self, architecture: Architecture, origins: Mapping[str, str]) -> Self:
        """The network of `architecture`, each of its blocks with the weights of the block here that `origins` names."""
        with torch.device("meta"):
            rebuilt = self.from_config({**self.config, "architecture": architecture.to_dict()})
        weights = self.state_dict()
        names = {name: BLOCK_NAME.sub(lambda match: origins[match[0]], name) for name in rebuilt.state_dict()}
        return rebuilt._fill({name: weights[origin] for name, origin in names.items()}).train(self.training)

    def _fill(self, weights: Mapping[str, Tensor]) -> Self:
        """Take copies of weights, in their own dtype, to where there are none yet."""
        self.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)
        return self

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel) -> Self:
        """diffusers' UNet, with a copy of its weights. Raises `ValueError` where it is not Stable Diffusion's kind."""
        with torch.device("meta"):
            elastic = cls.from_config(unet.config)
        return elastic._fill(unet.state_dict()).train(unet.training)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As diffusers' own. The config may be an ElasticUNet's or a `UNet2DConditionModel`'s."""
        if isinstance(config, dict) and "architecture" not in config:
            config = elastic_config(config)
        return super().from_config(config, return_unused_kwargs, **kwargs)


def _levels(blocks: nn.ModuleDict) -> Iterable[Level]:
    return cast("Iterable[Level]", blocks.values())


def _heads_per_level(heads: int | Sequence[int], widths: tuple[int, ...]) -> tuple[int, ...]:
    counts = (heads,) * len(widths) if isinstance(heads, int) else tuple(heads)
    if len(counts) != len(widths) or min(counts) < 1:
        raise ValueError(f"got num_attention_heads {heads}, expected one number, or one for each of widths {widths}")
    return counts
