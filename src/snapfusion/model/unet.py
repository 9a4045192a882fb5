"""The UNet of an `Architecture`, built from diffusers' blocks under diffusers' names.

With every block there it is `UNet2DConditionModel`: the same state dict, the same output to the last bit. A block that
was removed has no weights and leaves nothing in an exported graph; one that is there can be switched off for a call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from snapfusion.model.architecture import Architecture
from snapfusion.model.block import Block, Kind
from snapfusion.model.diffusers_config import elastic_config

NORM_EPS = 1e-5
BLOCK_NAME = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions)\.\d+(\.copies\.\d+)?")


class Level(nn.Module):
    """The blocks of one stage of the UNet. They are keyed by position; where a block was removed there is no key."""

    _gradient_checkpointing_func: Callable[..., Tensor]  # this and the flag are set by enable_gradient_checkpointing

    def __init__(self, stage: str, blocks: Iterable[Block], build: Callable[[Block], nn.Module]) -> None:
        super().__init__()
        self.stage = stage
        self.gradient_checkpointing = False
        self.attentions, self.resnets = nn.ModuleDict(), nn.ModuleDict()
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        for block in blocks:
            siblings = self.resnets if block.kind == "resnet" else self.attentions
            if block.copy == 0:
                siblings[str(block.index)] = build(block)
            else:  # a child of its original, hence its name
                original = siblings[str(block.index)]
                original.copies = nn.ModuleList([*getattr(original, "copies", []), build(block)])

    def forward(
        self, index: int, hidden: Tensor, skip: Tensor | None, time: Tensor, embedding: Tensor, off: Collection[str]
    ) -> Tensor:
        """Send `hidden` [B, C, H, W] through the blocks of one position, but not those named in `off`."""
        for name, resnet in self._blocks("resnet", index):
            if name not in off:
                block_in = hidden if skip is None else torch.cat([hidden, skip], dim=1)
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    hidden = self._gradient_checkpointing_func(resnet, block_in, time)
                else:
                    hidden = resnet(block_in, time)
        for name, attention in self._blocks("attention", index):
            if name not in off:
                hidden = attention(hidden, encoder_hidden_states=embedding, return_dict=False)[0]
        return hidden

    def _blocks(self, kind: Kind, index: int) -> Iterator[tuple[str, nn.Module]]:
        siblings, name = (self.resnets if kind == "resnet" else self.attentions), f"{self.stage}.{kind}s.{index}"
        if str(index) in siblings:
            original = siblings[str(index)]
            yield name, original
            for number, copy in enumerate(getattr(original, "copies", [])):
                yield f"{name}.copies.{number}", copy


class ElasticUNet(ModelMixin, AttentionMixin, ConfigMixin):
    """A Stable Diffusion UNet of any architecture; loads, saves and runs in pipelines as diffusers' own does.

    `num_attention_heads` counts heads, for all levels or per level (Stable Diffusion's own config calls this number
    attention_head_dim); the other fields mean what they mean in `UNet2DConditionModel`. The defaults are those of
    Stable Diffusion v1.5. config.json holds the architecture as JSON.

    Training on CPU in bf16: `unet.set_attn_processor(AttnProcessor())` of diffusers takes plain matrix products, whose
    backward pass is faster there than that of fused attention.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("BasicTransformerBlock", "ResnetBlock2D")
    _skip_layerwise_casting_patterns = ("norm",)
    _repeated_blocks = ("BasicTransformerBlock",)

    @register_to_config
    def __init__(
        self,
        architecture: Architecture | Mapping[str, Any],
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
        self.register_to_config(architecture=architecture.to_dict())
        self.architecture = architecture
        self.heads = _heads_per_level(num_attention_heads, architecture.widths)
        blocks, width, depth = architecture.blocks(), architecture.widths[0], len(architecture.down)
        self.removable = frozenset(block.name for block in blocks if block.removable)

        self.conv_in = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, 4 * width, cond_proj_dim=time_cond_proj_dim)
        self.down_blocks, self.up_blocks = nn.ModuleDict(), nn.ModuleDict()
        for stage, slot in {slot.stage: slot for slot in architecture.slots()}.items():
            level = Level(stage, [block for block in blocks if block.stage == stage], self._build)
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
        config = self.config
        if block.kind == "resnet":
            return ResnetBlock2D(
                in_channels=block.width_in + block.skip_width,
                out_channels=block.width,
                temb_channels=4 * self.architecture.widths[0],
                groups=config.norm_num_groups,
                eps=NORM_EPS,
            )
        heads = self.heads[-1 if block.stage == "mid_block" else block.level]
        return Transformer2DModel(
            heads,
            block.width // heads,
            in_channels=block.width,
            norm_num_groups=config.norm_num_groups,
            cross_attention_dim=config.cross_attention_dim,
            use_linear_projection=config.use_linear_projection,
            upcast_attention=config.upcast_attention,
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
            off: names of blocks to replace by the identity in this call (Eq. 5). The function is that of
                `self.without(*off)`. Under DDP their weights get no gradient: `find_unused_parameters=True`.
            timestep_cond: an embedding that is added to the time's, [B, time_cond_proj_dim].
            cross_attention_kwargs, added_cond_kwargs: pipelines pass them; only None is understood.
            return_dict: whether to return an object with `sample` or a tuple.

        Returns:
            The prediction [B, out_channels, H, W].
        """
        if not self.removable.issuperset(off):
            raise ValueError(f"got {sorted(set(off) - self.removable)} to switch off, expected names in unet.removable")
        if cross_attention_kwargs or added_cond_kwargs:
            raise ValueError(
                "got cross_attention_kwargs or added_cond_kwargs, expected none; merge adapters beforehand"
            )
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time = self.time_embedding(self.time_proj(timestep).to(sample.dtype), timestep_cond)
        rest = (time, encoder_hidden_states, frozenset(off))
        # Where a side cannot be halved evenly on the way down, the way up has to be told the size.
        even = all(side % 2 ** (len(self.down_blocks) - 1) == 0 for side in sample.shape[-2:])

        hidden = self.conv_in(sample)
        skips = [hidden]
        for level, positions in zip(self.down_blocks.values(), self.architecture.down, strict=True):
            for index, position in enumerate(positions):
                hidden = level(index, hidden, None, *rest)
                if position.skip:
                    skips.append(hidden)
            for downsampler in level.downsamplers:
                hidden = downsampler(hidden)
                skips.append(hidden)
        for index in range(len(self.architecture.mid)):
            hidden = self.mid_block(index, hidden, None, *rest)
        for level, positions in zip(self.up_blocks.values(), self.architecture.up, strict=True):
            for index, position in enumerate(positions):
                hidden = level(index, hidden, skips.pop() if position.skip else None, *rest)
            for upsampler in level.upsamplers:
                hidden = upsampler(hidden, None if even else skips[-1].shape[-2:])
        prediction = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def evolve(self, architecture: Architecture, start: Literal["identity", "same"] = "identity") -> Self:
        """The network of another architecture with a copy of this one's weights.

        `start` is how copies begin that are not here yet: as the identity (their last projection zero), which leaves the
        function as it is, or with their original's weights. Raises `ValueError` for blocks that cannot be had from here.
        """
        here = {block.name for block in self.architecture.blocks()}
        origins = {block.name: block.name if block.name in here else block.original for block in architecture.blocks()}
        missing = sorted(set(origins.values()) - here)
        if missing or architecture.widths != self.architecture.widths:
            raise ValueError(f"got an architecture with other widths or with {missing}, expected blocks that are here")
        evolved = self._rebuild(architecture, origins)
        if start == "identity":
            for name in origins.keys() - here:
                _make_identity(evolved.get_submodule(name))
        return evolved

    def without(self, *names: str) -> Self:
        """The smaller network that remains when blocks go for good, with a copy of the other weights.

        Behind an original that goes, its first copy takes over its name, with its own weights.
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
            rebuilt = type(self).from_config({**self.config, "architecture": architecture.to_dict()})
        weights = self.state_dict()
        names = {key: BLOCK_NAME.sub(lambda match: origins[match[0]], key) for key in rebuilt.state_dict()}
        rebuilt.load_state_dict({key: weights[name].clone() for key, name in names.items()}, assign=True)
        return rebuilt.train(self.training)

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel) -> Self:
        """diffusers' UNet with a copy of its weights. Raises `ValueError` for one that is not Stable Diffusion's kind."""
        with torch.device("meta"):
            elastic = cls.from_config(unet.config)
        elastic.load_state_dict({name: weight.clone() for name, weight in unet.state_dict().items()}, assign=True)
        return elastic.train(unet.training)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers. `config` is an ElasticUNet's or a UNet2DConditionModel's config.json."""
        config = config if "architecture" in config else elastic_config(config)
        return super().from_config(config, return_unused_kwargs, **kwargs)


def _heads_per_level(heads: int | Sequence[int], widths: tuple[int, ...]) -> tuple[int, ...]:
    counts = (heads,) * len(widths) if isinstance(heads, int) else tuple(heads)
    if len(counts) != len(widths) or any(width % count for count, width in zip(counts, widths, strict=True)):
        raise ValueError(f"got num_attention_heads {heads}, expected one number or one per level that divides {widths}")
    return counts


@torch.no_grad()
def _make_identity(block: nn.Module) -> None:
    """Zero a block's last projection, so that it adds nothing to its input; in an up ResNet, let the skip not pass."""
    last = block.proj_out if isinstance(block, Transformer2DModel) else block.conv2
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    if isinstance(block, ResnetBlock2D) and block.conv_shortcut is not None:
        nn.init.dirac_(block.conv_shortcut.weight)  # the first of its inputs are the hidden state
        nn.init.zeros_(block.conv_shortcut.bias)
