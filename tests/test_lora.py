"""LoRAs of every layout merged: W + scale * alpha / r * up @ down by hand in float64, and as diffusers does it."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from snapfusion.checkpoint import Checkpoint, save_checkpoint
from snapfusion.lora import Lora, merge
from snapfusion.model.architecture import Architecture
from tiny_loras import ALPHA, LAYOUTS, ORIGINAL, RANK, SCALE, TEXT, UNET, Change, diffusers, kohya, peft, write
from tiny_models import seeded, stable_diffusion_checkpoint, sticker_checkpoint


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    return seeded(stable_diffusion_checkpoint)


@pytest.fixture
def checkpoint(base: Checkpoint) -> Checkpoint:
    """A copy to change."""
    changed = {part: copy.deepcopy(getattr(base, part)) for part in ("unet", "text_encoder")}
    return Checkpoint(**{**vars(base), **changed})


def layer(checkpoint: Checkpoint, name: str) -> Any:
    if name in TEXT:
        text = checkpoint.text_encoder.model
        return text.get_submodule(name if hasattr(text, "encoder") else f"text_model.{name}")
    return checkpoint.unet.get_submodule(name)


@pytest.fixture
def changes(checkpoint: Checkpoint) -> dict[str, Change]:
    draw = torch.Generator().manual_seed(1)
    made = {}
    for name in (*UNET, *TEXT):
        out, inside, *kernel = layer(checkpoint, name).weight.shape
        down = torch.randn(RANK, inside, *kernel, generator=draw)
        made[name] = down, torch.randn(out, RANK, *(1 for _ in kernel), generator=draw)
    return made


def expected(before: Tensor, change: Change, strength: float) -> Tensor:
    down, up = (part.flatten(1).double() for part in change)
    return (before.double() + strength * (up @ down).reshape(before.shape)).float()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_is_added_to_what_it_names_and_to_nothing_else(
    checkpoint: Checkpoint, changes: dict[str, Change], tmp_path: Path, layout: str
) -> None:
    before = {part: {name: value.clone() for name, value in network.state_dict().items()} for part, network in
              (("unet", checkpoint.unet), ("text", checkpoint.text_encoder.model))}  # fmt: skip
    make, settings = LAYOUTS[layout]
    merged = merge(checkpoint, Lora(write(tmp_path / "lora.safetensors", make(changes), settings), SCALE))
    named = [name for name in changes if layout != "PEFT" or name not in TEXT]
    assert (merged.layers, merged.removed) == (len(named), 0)
    changed = 0
    for part, network in (("unet", checkpoint.unet), ("text", checkpoint.text_encoder.model)):
        for key, value in network.state_dict().items():
            name = key.removesuffix(".weight").removeprefix("text_model.")
            if name in named:
                wanted = expected(before[part][key], changes[name], SCALE * ALPHA / RANK)
                torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)
                changed += 1
            else:
                assert torch.equal(value, before[part][key])
    assert changed == len(named)


def test_alpha_is_the_rank_where_nothing_says_otherwise(
    checkpoint: Checkpoint, changes: dict[str, Change], tmp_path: Path
) -> None:
    name = UNET[0]
    before = layer(checkpoint, name).weight.detach().clone()
    merge(checkpoint, Lora(write(tmp_path / "a.safetensors", diffusers({name: changes[name]})), SCALE))
    torch.testing.assert_close(layer(checkpoint, name).weight, expected(before, changes[name], SCALE))


def test_pefts_settings_are_kept(checkpoint: Checkpoint, changes: dict[str, Change], tmp_path: Path) -> None:
    """One alpha for some layers; and a root in place of the rank, as in rank-stabilised LoRA."""
    settings = {"unet.lora_alpha": 8.0, "unet.alpha_pattern": {"attn1.to_q": 5.0}, "unet.use_rslora": True}
    one, other = UNET[:2]
    before = [layer(checkpoint, name).weight.detach().clone() for name in (one, other)]
    file = write(tmp_path / "a.safetensors", diffusers({name: changes[name] for name in (one, other)}), settings)
    merge(checkpoint, Lora(file))
    for name, start, alpha in zip((one, other), before, (5.0, 8.0), strict=True):
        wanted = expected(start, changes[name], alpha / math.sqrt(RANK))
        torch.testing.assert_close(layer(checkpoint, name).weight, wanted)


def test_pefts_own_folder_is_read(checkpoint: Checkpoint, changes: dict[str, Change], tmp_path: Path) -> None:
    before = layer(checkpoint, UNET[0]).weight.detach().clone()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "r": RANK}))
    merge(checkpoint, Lora(write(tmp_path / "adapter_model.safetensors", peft(changes))))
    torch.testing.assert_close(layer(checkpoint, UNET[0]).weight, expected(before, changes[UNET[0]], ALPHA / RANK))


@pytest.mark.parametrize("layout", ["kohya", "kohya, original names", "diffusers"])
def test_keys_of_removed_blocks_are_counted(
    checkpoint: Checkpoint, changes: dict[str, Change], tmp_path: Path, layout: str
) -> None:
    whole = checkpoint.unet
    unet = whole.without("down_blocks.0.attentions.0", "mid_block.attentions.0")
    smaller = Checkpoint(**{**vars(checkpoint), "unet": unet})
    make, settings = LAYOUTS[layout]
    merged = merge(smaller, Lora(write(tmp_path / "a.safetensors", make(changes), settings), 2.0))
    assert (merged.layers, merged.removed) == (6, 4)
    assert merged.describe().endswith("a.safetensors: merged into 6 layers at scale 2; 4 of removed blocks left out")


def test_a_copy_is_no_part_of_what_a_lora_was_made_for(
    checkpoint: Checkpoint, changes: dict[str, Change], tmp_path: Path
) -> None:
    copied = checkpoint.unet.architecture.with_copies("down_blocks.0.attentions.0")
    unet = checkpoint.unet.evolve(copied, start="same")
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    merge(Checkpoint(**{**vars(checkpoint), "unet": unet}), Lora(write(tmp_path / "a.safetensors", kohya(changes))))
    changed = {name for name, value in unet.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name in UNET}


def test_a_deepest_level_that_is_gone_is_known(
    checkpoint: Checkpoint, changes: dict[str, Change], tmp_path: Path
) -> None:
    unet = checkpoint.unet.evolve(Architecture.bk_tiny(checkpoint.unet.architecture.widths), start="same")
    smaller = Checkpoint(**{**vars(checkpoint), "unet": unet})
    merged = merge(smaller, Lora(write(tmp_path / "a.safetensors", kohya(changes, ORIGINAL))))
    assert (merged.layers, merged.removed) == (8, 2)  # the middle's and the deepest upsampler's


def test_texts_that_name_loras() -> None:
    assert Lora.parse("a/b.safetensors") == Lora(Path("a/b.safetensors"), 1.0)
    assert Lora.parse("a/b.safetensors:0.8") == Lora(Path("a/b.safetensors"), 0.8)
    assert Lora.parse("a:b.safetensors:-1") == Lora(Path("a:b.safetensors"), -1.0)
    assert Lora.parse("a:b.safetensors") == Lora(Path("a:b.safetensors"), 1.0)


KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
BROKEN: dict[str, tuple[dict[str, Tensor], str]] = {
    "another layer": (
        {"lora_unet_label_emb_0_0.lora_down.weight": torch.zeros(2, 8)},
        "lora_unet_label_emb_0_0.lora_down.weight: got a weight for nothing that is known here, expected",
    ),
    "another text encoder": (
        {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 8)},
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight: got a weight for nothing",
    ),
    "LoHa": ({f"{KEY}.hada_w1_a": torch.zeros(2, 8)}, f"{KEY}.hada_w1_a: got a weight for nothing that is known"),
    "DoRA": ({f"{KEY}.dora_scale": torch.zeros(8)}, f"{KEY}.dora_scale: got a weight for nothing that is known"),
    "half": ({f"{KEY}.lora_down.weight": torch.zeros(2, 8)}, "attn1.to_q: got only down, expected both down and up"),
    "misshapen": (
        {f"{KEY}.lora_down.weight": torch.zeros(2, 9), f"{KEY}.lora_up.weight": torch.zeros(8, 2)},
        "attn1.to_q: got up [8, 2] and down [2, 9], expected a product of shape [8, 8]",
    ),
    "nothing": ({}, "got no weights, expected LoRA weights of diffusers, PEFT or kohya"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_by_name(checkpoint: Checkpoint, tmp_path: Path, case: str) -> None:
    weights, message = BROKEN[case]
    with pytest.raises(ValueError, match="expected") as error:
        merge(checkpoint, Lora(write(tmp_path / "lora.safetensors", weights)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (Lora(Path("no.safetensors")), "missing, expected a LoRA's .safetensors"),
        (Lora(Path("a.ckpt")), "got a pickle, expected .safetensors"),
        (Lora(Path("a.safetensors"), math.nan), "got scale nan, expected a finite number"),
    ],
)
def test_what_is_no_lora_is_refused(checkpoint: Checkpoint, lora: Lora, message: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        merge(checkpoint, lora)
    assert message in str(error.value)


def test_a_checkpoint_of_another_text_encoder_takes_one_of_its_unet(tmp_path: Path) -> None:
    stickers = sticker_checkpoint()
    name = UNET[0]
    weight = layer(stickers, name).weight
    change = torch.ones(RANK, weight.shape[1]), torch.ones(weight.shape[0], RANK)
    assert merge(stickers, Lora(write(tmp_path / "a.safetensors", kohya({name: change})))).layers == 1


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_fuses_the_same(
    checkpoint: Checkpoint, changes: dict[str, Change], tmp_path: Path, layout: str
) -> None:
    """diffusers merges through PEFT, which tests alone need."""
    make, settings = LAYOUTS[layout]
    # Its table of kohya's names knows no upsampler and no time embedding.
    known = {name: change for name, change in changes.items() if name not in UNET[5:]}
    targets = {"unet": UNET[:5], "text_encoder": TEXT}
    for part, names in targets.items() if settings else ():  # what PEFT wants to know besides
        settings = {**settings, f"{part}.r": RANK, f"{part}.target_modules": [*names]}
    file = write(tmp_path / "lora.safetensors", make(known), settings)
    save_checkpoint(checkpoint, tmp_path / "checkpoint")
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "checkpoint", safety_checker=None)
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(lora_scale=SCALE)
    pipeline.unload_lora_weights()
    merge(checkpoint, Lora(file, SCALE))
    for name in known:
        theirs = (pipeline.text_encoder if name in TEXT else pipeline.unet).get_submodule(name).weight
        torch.testing.assert_close(layer(checkpoint, name).weight, theirs, rtol=1e-5, atol=1e-5)
