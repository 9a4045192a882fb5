"""A checkpoint as one safetensors file under the names of the original Stable Diffusion code, in and out.

    model.diffusion_model.*   first_stage_model.*   cond_stage_model.*

Such a file tells the shapes of its weights and no more. The rest, what the JSON files of a folder in diffusers' layout
say, ships with us for Stable Diffusion v1 and v2 (`configs/`). A file that we write has it in its metadata, so any
network comes back, and the way back gives the folder that it was made from.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from snapfusion.checkpoint import CLIP_PREFIX, Checkpoint, build, fill_text_encoder, text_weights
from snapfusion.diffusion.schedule import Schedule
from snapfusion.json_file import read_json
from snapfusion.model.configs import (
    config_of_text_encoder,
    config_of_unet,
    config_of_vae,
    text_model_of,
    unet_of,
    vae_of,
)
from snapfusion.model.original_names import (
    CLIP,
    OPEN_CLIP,
    TEXT,
    THIRD,
    UNET,
    VAE,
    clip_names,
    open_clip_names,
    unet_names,
    vae_names,
)
from snapfusion.tokens import clip_tokenizer, clip_vocabulary, prepare, read_merges, tokenizer_config
from snapfusion.weights import PICKLES, fill, open_tensors, read_tensors, write_weights

CONFIGS = Path(__file__).parent / "configs"
MERGES = CONFIGS / "clip" / "merges.txt"
UNET_JSON, VAE_JSON, TEXT_JSON = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER_JSON, TOKENIZER_JSON = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
NEEDED = (UNET_JSON, VAE_JSON, TEXT_JSON, SCHEDULER_JSON, TOKENIZER_JSON)
TOKENIZER, LICENCES = "tokenizer/tokenizer.json", "licences.json"  # where they are not CLIP's, and where there are some
METADATA = "snapfusion"
PARTS = (UNET, VAE, TEXT)

TEXT_WIDTH = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FAMILIES = {768: "v1-5", 1024: "v2-1-base"}
"""Which configuration goes with the width of the text that the UNet listens to."""
OTHERS = {
    "xl_base": "Stable Diffusion XL",
    "xl_inpaint": "Stable Diffusion XL for inpainting",
    "xl_refiner": "the refiner of Stable Diffusion XL",
    "inpainting": "Stable Diffusion v1 for inpainting",
    "inpainting_v2": "Stable Diffusion v2 for inpainting",
    "instruct-pix2pix": "InstructPix2Pix",
    "upscale": "Stable Diffusion's upscaler",
}
V_BIAS, V_DEVIATION = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09
"""Weights of v2 do not say whether they predict noise or velocity. ComfyUI tells by this deviation; so do we."""
# Training's own: averages, the noise schedule, counters, the loss of the autoencoder, tables; and what CLIP has beyond
# the states that Stable Diffusion reads.
LEFT_OVER = re.compile(
    r"model_ema\..*|betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_.*|posterior_.*|lvlb_weights|logvar|scale_factor"
    r"|global_step|epoch|v_pred|ztsnr|first_stage_model\.loss\..*|cond_stage_model\.(model\.)?(logit_scale|text_projection)"
    r"|cond_stage_model\..*\.position_ids|cond_stage_model\.model\.attn_mask"
)


def load_single_file(file: Path) -> Checkpoint:
    """The checkpoint in `file`: float32, on the CPU, in evaluation mode.

    Raises `ValueError` for a pickle, for a file that is not whole, for another model than Stable Diffusion v1 or v2,
    and for weights that are missing, unknown or of another shape, under the names that the file has for them.
    """
    shapes, configs = read_header(file)
    tokenizer, length = _tokenizer(file, configs)
    unet = build(unet_of, configs[UNET_JSON], file)
    vae = build(vae_of, configs[VAE_JSON], file)
    text_model = build(text_model_of, configs[TEXT_JSON], file)
    rename = {
        UNET: unet_names(unet.architecture),
        VAE: vae_names(len(cast(Any, vae.config).block_out_channels)),
        TEXT: open_clip_names if f"{OPEN_CLIP}token_embedding.weight" in shapes else clip_names,
    }
    text_names = [CLIP_PREFIX + name.removeprefix(CLIP_PREFIX) for name in text_model.state_dict()]
    names = {UNET: list(unet.state_dict()), VAE: list(vae.state_dict()), TEXT: text_names}
    tables = {part: {rename[part](name): name for name in names[part]} for part in PARTS}
    tables[TEXT] |= {CLIP + name.removeprefix(CLIP_PREFIX): name for name in text_names}  # as some merged files have it

    beyond = f"{OPEN_CLIP}transformer.resblocks.{cast(Any, text_model.config).num_hidden_layers}."
    unread = {name for name in shapes if LEFT_OVER.fullmatch(name) or name.startswith(beyond)}
    weights: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for original, tensor in read_tensors(file, unread):
        part = next((part for part in PARTS if original.startswith(part)), None)
        if part is None:
            raise ValueError(f"{file}: {original}: got a weight of no known part, expected {', '.join(PARTS)}")
        for name, weight in _taken_apart(original, tensor):
            weights[part][tables[part].get(name, name)] = weight
    return Checkpoint(
        tokenizer=tokenizer,
        length=length,
        text_encoder=fill_text_encoder(
            text_model, weights.pop(TEXT, {}), file, lambda name: rename[TEXT](CLIP_PREFIX + name)
        ),
        unet=fill(unet, weights.pop(UNET, {}), file, rename[UNET]),
        vae=fill(vae, weights.pop(VAE, {}), file, rename[VAE]),
        schedule=Schedule.from_config(configs[SCHEDULER_JSON]),
    )


def save_single_file(
    checkpoint: Checkpoint, file: Path, dtype: torch.dtype = torch.float32, licences: Mapping[str, Any] | None = None
) -> None:
    """Write `checkpoint` to `file`, weights as `dtype`.

    Raises `ValueError` for a text encoder that is not CLIP's: the original layout has no names for another.
    """
    text_encoder, unet, vae = checkpoint.text_encoder, checkpoint.unet, checkpoint.vae
    if not isinstance(text_encoder.model, transformers.CLIPTextModel):
        got = type(text_encoder.model).__name__
        raise ValueError(f"got a {got} to write to {file}, expected CLIP's text encoder; write a folder instead")
    rename_unet = unet_names(unet.architecture)
    rename_vae = vae_names(len(cast(Any, vae.config).block_out_channels))
    # Stable Diffusion v2 has OpenCLIP's text encoder, which alone has the exact GELU.
    rename_text = open_clip_names if text_encoder.model.config.hidden_act == "gelu" else clip_names
    weights = _put_together(
        {rename_unet(name): weight for name, weight in unet.state_dict().items()}
        | {rename_vae(name): _as_convolution(name, weight) for name, weight in vae.state_dict().items()}
        | {rename_text(name): weight for name, weight in text_weights(text_encoder).items()}
    )
    configs = {
        UNET_JSON: config_of_unet(unet),
        VAE_JSON: config_of_vae(vae),
        TEXT_JSON: config_of_text_encoder(text_encoder),
        SCHEDULER_JSON: checkpoint.schedule.to_config(),
        TOKENIZER_JSON: tokenizer_config(checkpoint.tokenizer, checkpoint.length),
    }
    if checkpoint.tokenizer.get_vocab() != clip_vocabulary(read_merges(MERGES)):
        configs[TOKENIZER] = json.loads(checkpoint.tokenizer.to_str())
    if licences:
        configs[LICENCES] = dict(licences)
    # One entry alone: safetensors writes several in any order, and the same checkpoint would make other bytes.
    write_weights(weights, file, dtype, {METADATA: json.dumps(configs, ensure_ascii=False, sort_keys=True)})


def read_header(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """The shapes of a file's weights, and what the JSON files of a folder would say beside them."""
    if file.suffix in PICKLES:
        raise ValueError(
            f"{file}: got a pickle, expected .safetensors: a pickle can run code when it is opened; "
            "have a tool that you trust write it as safetensors, on a machine where that may happen"
        )
    with open_tensors(file) as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.offset_keys()}
        metadata = opened.metadata() or {}
    if METADATA not in metadata:
        return shapes, _recognised(file, shapes, metadata)
    try:
        configs = json.loads(metadata[METADATA])
    except ValueError:
        configs = None
    if not isinstance(configs, dict) or not all(isinstance(configs.get(name), dict) for name in NEEDED):
        raise ValueError(f"{file}: got other metadata under {METADATA!r} than we write; write the file again")
    return shapes, configs


def _recognised(file: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The configuration that ships with us for weights of such shapes."""
    # Half a second of imports, which our own files do not need.
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    kind = infer_diffusers_model_type({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    if kind not in ("v1", "v2") or f"{UNET}label_emb.0.0.weight" in shapes:
        got = OTHERS.get(kind, "a relative of Stable Diffusion XL" if kind in ("v1", "v2") else kind)
        raise ValueError(f"{file}: got {got}, expected Stable Diffusion v1 or v2")
    if TEXT_WIDTH not in shapes:
        got = f"{next(iter(shapes))} and {len(shapes) - 1} more" if shapes else "no weights"
        advice = "; a LoRA is merged into a checkpoint: --lora FILE" if any("lora" in name for name in shapes) else ""
        raise ValueError(f"{file}: got {got}, expected a checkpoint with {TEXT_WIDTH}{advice}")
    width = shapes[TEXT_WIDTH][-1]
    if width not in FAMILIES:
        raise ValueError(f"{file}: {TEXT_WIDTH}: got text of width {width}, expected one of {[*FAMILIES]}")
    folder = CONFIGS / FAMILIES[width]
    configs = {name: read_json(folder / name) for name in NEEDED}
    if _predicts_velocity(file, shapes, metadata, width):
        configs[SCHEDULER_JSON]["prediction_type"] = "v_prediction"
        configs[SCHEDULER_JSON]["rescale_betas_zero_snr"] = "ztsnr" in shapes
        if width == 1024:
            configs[UNET_JSON]["sample_size"] = 96  # v2 learned velocity on pictures of 768 px
    return configs


def _predicts_velocity(
    file: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], width: int
) -> bool:
    """By what the file says of itself: its metadata, a marker among its weights, or `V_BIAS`."""
    said = metadata.get("modelspec.prediction_type")
    if said is not None or "v_pred" in shapes:
        return said in ("v", "v_prediction", None)
    if width == 768 or V_BIAS not in shapes:
        return False
    with open_tensors(file) as opened:
        return opened.get_tensor(V_BIAS).float().std(correction=0).item() > V_DEVIATION


def _tokenizer(file: Path, configs: Mapping[str, Any]) -> tuple[Tokenizer, int]:
    try:
        own = configs.get(TOKENIZER)
        tokenizer = Tokenizer.from_str(json.dumps(own)) if own else stable_diffusion_tokenizer()
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{file}: got metadata with a tokenizer that is none ({error}), expected ours") from error
    return tokenizer, prepare(tokenizer, configs[TOKENIZER_JSON], file)


def stable_diffusion_tokenizer() -> Tokenizer:
    """CLIP's, which v1 and v2 share but for the token that they pad with."""
    merges = read_merges(MERGES)
    return clip_tokenizer(clip_vocabulary(merges), merges)


def _taken_apart(original: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of the file as the weights that diffusers makes of it."""
    if ".in_proj_" in original:
        yield from ((f"{original}[{place}]", third.clone()) for place, third in enumerate(tensor.chunk(3)))
    elif original.startswith(VAE) and ".mid.attn_1." in original and tensor.shape[2:] == (1, 1):
        yield original, tensor[:, :, 0, 0]  # a convolution of one point, which diffusers has as a product
    else:
        yield original, tensor


def _put_together(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Thirds of a tensor as that tensor."""
    thirds: dict[str, list[Tensor]] = defaultdict(list)
    for name in sorted(weights):
        if match := THIRD.fullmatch(name):
            thirds[match[1]].append(weights[name])
    whole = {name: weight for name, weight in weights.items() if not THIRD.fullmatch(name)}
    return whole | {name: torch.cat(parts) for name, parts in thirds.items()}


def _as_convolution(name: str, weight: Tensor) -> Tensor:
    return weight[:, :, None, None] if ".mid_block.attentions.0.to_" in name and weight.ndim == 2 else weight
