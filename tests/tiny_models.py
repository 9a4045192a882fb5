"""The real classes at a size that builds in milliseconds, with random weights from torch's global generator."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel

from snapfusion.checkpoint import Checkpoint
from snapfusion.diffusion.schedule import Schedule
from snapfusion.model.architecture import Architecture
from snapfusion.model.text import TextEncoder
from snapfusion.tiny import LENGTH, WIDTH, text_sizes
from snapfusion.tiny import autoencoder as tiny_vae
from snapfusion.tiny import checkpoint as sticker_checkpoint
from snapfusion.tiny import unet as tiny_unet
from snapfusion.tiny import word_pieces as word_piece_tokenizer
from snapfusion.tokens import CLIP_END, CLIP_START, clip_tokenizer

__all__ = [
    "LENGTH",
    "WIDTH",
    "byte_pair_tokenizer",
    "few_blocks_checkpoint",
    "seeded",
    "stable_diffusion_checkpoint",
    "sticker_checkpoint",
    "tiny_unet",
    "tiny_vae",
    "word_piece_tokenizer",
]

Built = TypeVar("Built")


def seeded(build: Callable[[], Built]) -> Built:
    """What `build` makes, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def few_blocks_checkpoint() -> Checkpoint:
    """The sticker base in small with a UNet of two levels, six ResNets and three cross-attentions."""
    return replace(sticker_checkpoint(), unet=tiny_unet(architecture=Architecture.bk_small((8, 16))).eval())


def stable_diffusion_checkpoint() -> Checkpoint:
    """Stable Diffusion v1 in small: CLIP, eps-prediction on its schedule, images 64 px, latents [4, 16, 16]."""
    tokenizer = byte_pair_tokenizer()
    config = CLIPTextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.token_to_id(CLIP_START),
        eos_token_id=tokenizer.token_to_id(CLIP_END),
        **text_sizes(),
    )
    schedule = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return Checkpoint(
        tokenizer=tokenizer,
        length=LENGTH,
        text_encoder=TextEncoder(CLIPTextModel(config).eval()),
        unet=tiny_unet().eval(),
        vae=tiny_vae(levels=3, patch_size=1).eval(),
        schedule=Schedule.from_config(schedule),
    )


def byte_pair_tokenizer() -> Tokenizer:
    """CLIP's, with every byte as a token and the merges that make a few whole words."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [("f", "o"), ("fo", "x</w>"), ("r", "e"), ("re", "d</w>"), ("c", "a"), ("ca", "t</w>")]
    tokens = [
        *alphabet,
        *(f"{byte}</w>" for byte in alphabet),
        *("".join(pair) for pair in merges),
        CLIP_START,
        CLIP_END,
    ]
    return clip_tokenizer({token: i for i, token in enumerate(tokens)}, merges)
