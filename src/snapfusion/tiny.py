"""What the recipe `tiny` compresses: a checkpoint, pictures, prices and networks that judge, made in seconds.

Every class is the real one at its smallest and every weight random, drawn from a seed: nothing is fetched, and figures
mean nothing. It is there to see the whole chain run.

    checkpoint/   the sticker base in small     data/      a built sticker set of coloured blocks
    weights/      the networks that judge       table.json what the blocks of such a UNet cost somewhere
"""

import io
import json
import shutil
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from snapfusion.checkpoint import Checkpoint, save_checkpoint
from snapfusion.data.choice import number
from snapfusion.data.pairs import INDEX, Pair
from snapfusion.diffusion.schedule import Schedule
from snapfusion.metrics.lpips import Lpips
from snapfusion.model.architecture import Architecture
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.model.text import TextEncoder
from snapfusion.model.unet import ElasticUNet
from snapfusion.stage_folder import run_in_folder
from snapfusion.tokens import set_pad_token
from snapfusion.weights import save_whole

TABLE = Path(__file__).parent / "tables" / "tiny.json"

LENGTH = 16  # tokens of a prompt
WIDTH = 16  # D of the embedding
SIDE = 64  # pixels
ARCHITECTURE = Architecture.sd15((8, 8, 16, 16))
WORDS = ["a", "red", "blue", "fox", "whale", "cat", "sticker", "render", "flat", "3d", ",", ".", "of", "the"]
THINGS = ("fox", "apple", "ghost", "boat", "castle", "drum", "cactus", "rocket")
STYLES = ("3d", "flat")
VARIANTS = 4  # pictures of each thing in each style, of which one is held out
PICTURES = len(THINGS) * len(STYLES) * VARIANTS


@dataclass(frozen=True)
class Config:
    """What all of it depends on."""

    seed: int = 0


@dataclass(frozen=True)
class Tiny:
    """Where all of it is."""

    checkpoint: Path
    data: Path
    table: Path
    weights: Path


def make(config: Config, out: Path) -> Tiny:
    """Make everything in folder `out`, unless it is there. Raises `ValueError` where `out` holds something else."""

    def work(folder: Path) -> dict[str, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            save_checkpoint(checkpoint(), folder / "checkpoint")
            write_judges(folder / "weights")
        write_set(folder / "data")
        shutil.copyfile(TABLE, folder / "table.json")
        return {}

    run_in_folder(out, config, {}, work)
    return Tiny(out / "checkpoint", out / "data", out / "table.json", out / "weights")


def checkpoint() -> Checkpoint:
    """The sticker base in small: BERT, v-prediction with zero terminal SNR, 64 px folded by 2, latents [4, 16, 16]."""
    tokenizer = word_pieces()
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
        unet=unet().eval(),
        vae=autoencoder(levels=2, patch_size=2).eval(),
        schedule=Schedule.from_config(schedule),
    )


def text_sizes() -> dict[str, Any]:
    """Of a text encoder of two layers, under transformers' names."""
    return {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def unet(sample_size: int = 16, architecture: Architecture = ARCHITECTURE) -> ElasticUNet:
    """By default of Stable Diffusion v1's topology: 4 levels, 2 ResNets a level, attention on all but the lowest."""
    return ElasticUNet(
        architecture,
        sample_size=sample_size,  # 16: the least whose lowest level is more than a point, on which OpenVINO fails
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        norm_num_groups=8,
    )


def autoencoder(levels: int, patch_size: int) -> PatchAutoencoderKL:
    """Of 8 channels in 4 groups, for pictures of 64 px."""
    return PatchAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        sample_size=SIDE,
        patch_size=patch_size,
    )


def word_pieces() -> Tokenizer:
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


def write_set(folder: Path) -> None:
    """Write the pictures and their index as `snapfusion data stickers` does."""
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    pairs = [pair_of(thing, style, n) for thing in THINGS for style in STYLES for n in range(VARIANTS)]
    with tarfile.open(folder / pairs[0].shard, "w") as tar:
        for pair in pairs:
            png = io.BytesIO()
            Image.fromarray(picture_of(pair)).save(png, "PNG")
            entry = tarfile.TarInfo(f"{pair.key}.png")
            entry.size = len(png.getvalue())
            tar.addfile(entry, io.BytesIO(png.getvalue()))
    rows = "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs)
    (folder / INDEX).write_text(rows, encoding="utf-8")


def pair_of(thing: str, style: str, variant: int) -> Pair:
    """A picture's row; the last variant is held out."""
    return Pair(
        key=f"{thing}{variant}_{style}", code=f"{thing}{variant}", label=f"{thing} {variant}", tags=(), base=thing,
        style=style, family=style, colour=None, core=True, split="cells" if variant == VARIANTS - 1 else "train",
        source="made up", licence="CC0-1.0", shard="shards/0.tar",
    )  # fmt: skip


def picture_of(pair: Pair) -> NDArray[np.uint8]:
    """Blocks whose colours say what it is, brighter in one style than in the other, noisy in every variant."""
    block = np.random.default_rng(number(pair.base)).uniform(0, 160, (4, 4, 3))
    noise = np.random.default_rng(number(pair.key)).normal(0, 12, (4, 4, 3))
    image = (block + noise + (60 if pair.style == "3d" else 0)).clip(0, 255).astype(np.uint8)
    return image.repeat(SIDE // 4, axis=0).repeat(SIDE // 4, axis=1)


class Glance(nn.Module):
    """In Inception's place: images `[B, 3, H, W]` to vectors `[B, 64]`, a random map of what 8x8 pixels show."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3 * 8 * 8, 64)

    def forward(self, image: Tensor) -> Tensor:
        return self.map(nn.functional.adaptive_avg_pool2d(image, 8).flatten(1))


def write_judges(folder: Path) -> None:
    """Write what `snapfusion.metrics.weights` would fetch and the chain needs: a VGG16, and an eye for judge B."""
    lpips = Lpips()
    for head in lpips.heads:
        nn.init.constant_(head, 1 / len(head))
    save_whole(lpips.state_dict(), folder / "lpips_vgg16.safetensors", {})
    glance: Any = torch.jit.trace(Glance().eval(), torch.zeros(1, 3, 299, 299))
    glance.save(str(folder / "inception_2015.pt"))
