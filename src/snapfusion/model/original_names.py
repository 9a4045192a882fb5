"""The names that weights have in the original Stable Diffusion code, from those that they have in diffusers.

    model.diffusion_model.input_blocks.1.0.in_layers.2.weight    down_blocks.0.resnets.0.conv1.weight
    first_stage_model.encoder.mid.attn_1.q.weight                encoder.mid_block.attentions.0.to_q.weight
    cond_stage_model.transformer.text_model.final_layer_norm.bias          text_model.final_layer_norm.bias

A block keeps its name whatever was removed around it, and a copy stands below its original, as in diffusers' names.
diffusers has functions for the way back alone, and they count blocks: one that is missing in the middle misleads them.
"""

import re
from collections.abc import Callable

from snapfusion.model.architecture import Architecture

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
CLIP, OPEN_CLIP = f"{TEXT}transformer.", f"{TEXT}model."
THIRD = re.compile(r"(.*\.in_proj_(?:weight|bias))\[([012])\]")
"""OpenCLIP keeps query, key and value in one tensor: `in_proj_weight[1]` here is the second third of its rows."""

Rename = Callable[[str], str]

BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)")
MID = re.compile(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)")
OUTSIDE = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
IN_VAE = (
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"\.resnets\.(\d+)", r".block.\1"),
    (r"\.(down|up)samplers\.0\.conv", r".\1sample.conv"),
    (r"\bconv_shortcut", "nin_shortcut"),
    (r"\bconv_norm_out", "norm_out"),
)
IN_OPEN_CLIP = (
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.embeddings\.", ""),
    (r"text_model\.final_layer_norm", "ln_final"),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm([12])", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"self_attn\.q_proj\.(\w+)", r"attn.in_proj_\1[0]"),
    (r"self_attn\.k_proj\.(\w+)", r"attn.in_proj_\1[1]"),
    (r"self_attn\.v_proj\.(\w+)", r"attn.in_proj_\1[2]"),
)


def unet_names(architecture: Architecture) -> Rename:
    """The original name of a weight of the UNet of `architecture`."""
    ahead = [len(positions) for positions in architecture.down]
    # Where the deepest levels are gone, those that are left keep their numbers.
    gone = len(architecture.widths) - len(architecture.down)
    back = [len(architecture.up[0])] * gone + [len(positions) for positions in architecture.up]
    bottom_attends = not gone and architecture.up[0][-1].attentions > 0

    def rename(name: str) -> str:
        if match := BLOCK.fullmatch(name):
            side, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            if side == "down_blocks":
                first = 1 + sum(ahead[:level]) + level  # a downsampler counts as a block, an upsampler does not
                if kind == "downsamplers":
                    return f"{UNET}input_blocks.{first + ahead[level]}.0.{rest.replace('conv', 'op', 1)}"
                return f"{UNET}input_blocks.{first + index}.{_child(kind, rest)}"
            first = sum(back[:level])
            if kind == "upsamplers":  # it stands behind the attention of its block, if the model was made with one
                return f"{UNET}output_blocks.{first + back[level] - 1}.{2 if level or bottom_attends else 1}.{rest}"
            return f"{UNET}output_blocks.{first + index}.{_child(kind, rest)}"
        if match := MID.fullmatch(name):
            place = 2 * int(match[2]) + (match[1] == "attentions")
            return f"{UNET}middle_block.{place}.{_child(match[1], match[3])[2:]}"
        for here, there in OUTSIDE.items():
            if name.startswith(here):
                return UNET + there + name.removeprefix(here)
        raise ValueError(f"got the weight {name}, which the original layout has no name for")

    return rename


def vae_names(levels: int) -> Rename:
    """The original name of a weight of an autoencoder of so many levels."""

    def rename(name: str) -> str:
        name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
        return VAE + _replaced(name, IN_VAE)

    return rename


def clip_names(name: str) -> str:
    """The original name of a weight of the text encoder of Stable Diffusion v1: transformers' own."""
    return CLIP + name


def open_clip_names(name: str) -> str:
    """The original name of a weight of the text encoder of Stable Diffusion v2; see `THIRD`."""
    return OPEN_CLIP + _replaced(name, IN_OPEN_CLIP)


def _child(kind: str, rest: str) -> str:
    if kind == "attentions":
        return f"1.{rest}"
    return "0." + re.sub(r"\w+(?=\.(?:weight|bias)$)", lambda match: IN_RESNET[match[0]], rest)


def _replaced(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name
