"""A CLIP of 8,000 random weights as a folder in transformers' layout."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from snapfusion.tokens import CLIP_END, CLIP_START, write_tokenizer
from tiny_models import byte_pair_tokenizer

SIDE, LENGTH = 32, 12


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    tokenizer = byte_pair_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.token_to_id(CLIP_START),
        "eos_token_id": tokenizer.token_to_id(CLIP_END),
        **sizes,
    }
    vision = {"image_size": SIDE, "patch_size": 8, **sizes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    write_tokenizer(tokenizer, LENGTH, folder)
    preprocess = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    preprocess.save_pretrained(folder)
    return folder
