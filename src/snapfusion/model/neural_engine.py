"""Attention as Apple's Neural Engine wants it: channels before positions, one head at a time, projections as 1x1
convolutions.

After "Deploying Transformers on the Apple Neural Engine" (machinelearning.apple.com, 2022), whose principles these are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d


class SplitEinsum:
    """A processor for diffusers' `Attention` on `[B, S, D]`: the same numbers, another order of the axes."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        **ignored: Any,
    ) -> Tensor:
        assert attention_mask is None, "Stable Diffusion's UNet masks nothing"
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _project(attn.to_q, _channels_first(hidden_states))  # [B, D, 1, S]
        key, value = (_project(layer, _channels_first(context)) for layer in (attn.to_k, attn.to_v))  # [B, D, 1, T]
        heads = zip(*(tensor.chunk(attn.heads, dim=1) for tensor in (query, key, value)), strict=True)
        out = torch.cat([_attend(q, k, v, attn.scale) for q, k, v in heads], dim=1)
        return _project(attn.to_out[0], out)[:, :, 0].transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """One head: `[B, d, 1, S]`, `[B, d, 1, T]` twice, to `[B, d, 1, S]`. Softmax is over channels."""
    weights = torch.einsum("bchq,bkhc->bkhq", query * scale, key.transpose(1, 3)).softmax(dim=1)
    return torch.einsum("bkhq,bchk->bchq", weights, value)


def _channels_first(states: Tensor) -> Tensor:
    return states.transpose(1, 2).unsqueeze(2)


def _project(layer: nn.Linear, states: Tensor) -> Tensor:
    return conv2d(states, layer.weight[:, :, None, None], layer.bias)
