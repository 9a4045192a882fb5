"""One stage of the UNet: diffusers' blocks in their positions, each with its copies behind it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from snapfusion.model.block import Block, Kind


class Level(nn.Module):
    """The blocks of one stage, keyed by position; where a block was removed there is no key."""

    _gradient_checkpointing_func: Callable[..., Tensor]  # this and the flag are set by enable_gradient_checkpointing

    def __init__(self, stage: str, blocks: Iterable[Block], build: Callable[[Block], nn.Module]) -> None:
        super().__init__()
        self.stage = stage
        self.gradient_checkpointing = False
        self.attentions, self.resnets = nn.ModuleDict(), nn.ModuleDict()
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        for block in blocks:
            originals = self.resnets if block.kind == "resnet" else self.attentions
            if block.copy == 0:
                originals[str(block.index)] = build(block)
            else:  # a child of its original: that gives it its name
                original = originals[str(block.index)]
                original.copies = nn.ModuleList([*_copies(original), build(block)])

    def forward(
        self, index: int, hidden: Tensor, skip: Tensor | None, time: Tensor, embedding: Tensor, off: Collection[str]
    ) -> Tensor:
        """Send `hidden` [B, C, H, W] through the blocks of one position, but for those named in `off`."""
        for name, resnet in self._blocks("resnet", index):
            if name in off:
                continue
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
        originals = self.resnets if kind == "resnet" else self.attentions
        if str(index) in originals:
            name, original = f"{self.stage}.{kind}s.{index}", originals[str(index)]
            yield name, original
            for number, copy in enumerate(_copies(original)):
                yield f"{name}.copies.{number}", copy


def _copies(original: nn.Module) -> Iterable[nn.Module]:
    return getattr(original, "copies", ())


@torch.no_grad()
def make_identity(block: nn.Module) -> None:
    """Zero a block's last projection, so that it adds nothing to its input; in an up ResNet, shut the skip out too."""
    last = block.get_submodule("proj_out" if isinstance(block, Transformer2DModel) else "conv2")
    for weight in last.parameters():
        nn.init.zeros_(weight)
    if isinstance(block, ResnetBlock2D) and block.conv_shortcut is not None:
        weight, bias = block.conv_shortcut.parameters()
        nn.init.dirac_(weight)  # the first of its inputs are the hidden state
        nn.init.zeros_(bias)
