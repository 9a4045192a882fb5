"""The real classes at a size that builds in milliseconds, with random weights from torch's global generator."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

from snapfusion.checkpoint import Checkpoint
from snapfusion.diffusion.schedule import Schedule
from snapfusion.model.architecture import Architecture
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.text import TextEncoder
from snapfusion.model.unet import ElasticUNet
from snapfusion.tokens import CLIP_END, CLIP_START, clip_tokenizer, set_pad_token

LENGTH = 16
WIDTH = 16  # D of the text encoders
WORDS = ["a", "red", "blue", "fox", "whale", "cat", "sticker", "render", "flat", "3d", ",", ".", "of", "the"]


def sticker_checkpoint() -> Checkpoint:
    """The sticker base in small: BERT, v-prediction with zero terminal SNR, 64 px folded by 2, latents [4, 16, 16]."""
    tokenizer = word_piece_tokenizer()
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=LENGTH, **text_sizes())
    schedule = {
        "beta_schedule": "squaredcos_cap_v2",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    return Checkpoint(
        tokenizer=tokenizer,
        length=LENGTH,
        text_encoder=TextEncoder(BertModel(config).eval()),
        unet=tiny_unet().eval(),
        vae=tiny_vae(levels=2, patch_size=2).eval(),
        schedule=Schedule.from_config(schedule),
    )


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


def text_sizes() -> dict[str, Any]:
    return {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_unet() -> ElasticUNet:
    """Stable Diffusion v1's topology: 4 levels, 2 ResNets a level, attention on all but the lowest."""
    return ElasticUNet(
        Architecture.sd15((8, 8, 16, 16)),
        sample_size=16,  # the least whose lowest level is more than a point: OpenVINO fails on a point
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        norm_num_groups=8,
    )


def tiny_vae(levels: int, patch_size: int) -> PatchAutoencoderKL:
    return PatchAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        sample_size=64,
        patch_size=patch_size,
    )


def word_piece_tokenizer() -> Tokenizer:
    """BERT's, with a few whole words and every lower-case letter and digit as a piece."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = [*specials, *dict.fromkeys([*WORDS, *letters]), *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(specials)
    ends = [("[CLS]", pieces.index("[CLS]")), ("[SEP]", pieces.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    set_pad_token(tokenizer, "[PAD]")
    return tokenizer


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
