"""The text encoder: tokens `[B, L]` to an embedding `[B, L, D]`, around any text encoder of transformers.

Two conventions meet here and nowhere else. Stable Diffusion lets CLIP read a padded prompt as it stands, so its padding
carries meaning to the UNet. Encoders of the BERT kind (all-MiniLM-L6-v2) must not see padding, and the UNet must not
see what they make of it: such rows are masked from attention and zero in the embedding, and the UNet needs no mask.
"""

from typing import Any, cast

from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedModel


class TextEncoder(nn.Module):
    """Tokens in, embedding out. The unconditional embedding is that of the empty prompt, as in Stable Diffusion."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` returns `last_hidden_state`. All but CLIP's must name their pad token in `config.pad_token_id`."""
        super().__init__()
        self.model = model
        pad_id = cast(Any, model.config).pad_token_id
        if not isinstance(model, CLIPTextModel) and pad_id is None:
            raise ValueError(f"got a {type(model).__name__} whose config has no pad_token_id, expected one")
        self.pad_id: int | None = None if isinstance(model, CLIPTextModel) else pad_id

    @property
    def width(self) -> int:
        """D, the UNet's `cross_attention_dim`."""
        return cast(Any, self.model.config).hidden_size

    def forward(self, input_ids: Tensor) -> Tensor:
        """Tokens `[B, L]` int64 to the embedding `[B, L, D]`; rows of padding are zero unless the encoder is CLIP's."""
        if self.pad_id is None:
            return self.model(input_ids=input_ids).last_hidden_state
        mask = input_ids != self.pad_id
        states = self.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        return states * mask[..., None].to(states.dtype)
