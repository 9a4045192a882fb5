"""Single files in and out: what goes out comes back, diffusers reads it, and loading takes little memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from snapfusion import single_file
from snapfusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from snapfusion.model.architecture import Architecture
from snapfusion.model.configs import unet_of, vae_of
from snapfusion.model.original_names import UNET
from snapfusion.model.text import TextEncoder
from snapfusion.single_file import load_single_file, save_single_file
from snapfusion.tiny import text_sizes
from tiny_models import LENGTH, WIDTH, seeded, stable_diffusion_checkpoint, sticker_checkpoint


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return seeded(stable_diffusion_checkpoint)


@pytest.fixture
def file(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_single_file(checkpoint, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ----------------------------------------------------------------------------------------------------------------------
# What goes out comes back


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("sd15", torch.float16), ("table3", torch.float32), ("bk_tiny", torch.bfloat16)]
)
def test_folder_to_file_to_folder_gives_the_same_bytes(
    checkpoint: Checkpoint, tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    unet = checkpoint.unet
    if architecture != "sd15":
        wanted = getattr(Architecture, architecture)(unet.architecture.widths)
        unet = unet.evolve(wanted, start="same")
    save_checkpoint(Checkpoint(**{**vars(checkpoint), "unet": unet}), tmp_path / "before", dtype)
    save_single_file(load_checkpoint(tmp_path / "before"), tmp_path / "model.safetensors", dtype)
    save_checkpoint(load_single_file(tmp_path / "model.safetensors"), tmp_path / "after", dtype)
    assert files(tmp_path / "before") == files(tmp_path / "after")

    save_single_file(load_single_file(tmp_path / "model.safetensors"), tmp_path / "again.safetensors", dtype)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("decoder", [{"decoder_block_out_channels": (4, 4, 4)}, {"decoder_class": "DecoderTiny"}])
def test_another_decoder_comes_back(checkpoint: Checkpoint, tmp_path: Path, decoder: dict[str, Any]) -> None:
    vae = vae_of({**checkpoint.vae.config, **decoder})
    file = tmp_path / "model.safetensors"
    save_single_file(Checkpoint(**{**vars(checkpoint), "vae": vae}), file)
    before, after = vae.state_dict(), load_single_file(file).vae.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_evolved_unet_keeps_the_names_of_what_is_left(checkpoint: Checkpoint, file: Path, tmp_path: Path) -> None:
    unet = checkpoint.unet.without("down_blocks.1.attentions.0", "mid_block.resnets.1")
    save_single_file(Checkpoint(**{**vars(checkpoint), "unet": unet}), tmp_path / "small.safetensors")
    before, after = load_file(file), load_file(tmp_path / "small.safetensors")
    gone = {name for name in before if name.startswith((f"{UNET}input_blocks.4.1.", f"{UNET}middle_block.2."))}
    assert gone
    assert after.keys() == before.keys() - gone
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_diffusers_loads_the_file(checkpoint: Checkpoint, file: Path, tiny_sd_checkpoint: Path) -> None:
    pipeline: Any = StableDiffusionPipeline.from_single_file(
        file, config=str(tiny_sd_checkpoint), local_files_only=True, safety_checker=None
    )
    for theirs, ours in ((pipeline.unet, checkpoint.unet), (pipeline.vae, checkpoint.vae)):
        weights = ours.state_dict()
        assert theirs.state_dict().keys() == weights.keys()
        assert all(torch.equal(weight, weights[name]) for name, weight in theirs.state_dict().items())
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(pipeline.text_encoder(tokens)[0], checkpoint.text_encoder(tokens))


def test_the_text_encoder_of_v2_is_written_as_open_clips(checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = CLIPTextConfig(
        vocab_size=520, max_position_embeddings=LENGTH, hidden_act="gelu", bos_token_id=518, eos_token_id=519,
        **text_sizes(),
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    file = tmp_path / "v2.safetensors"
    save_single_file(Checkpoint(**{**vars(checkpoint), "text_encoder": TextEncoder(model)}), file)
    weights = load_file(file)
    assert weights["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"].shape == (3 * WIDTH, WIDTH)

    theirs = convert_open_clip_checkpoint(model, weights)
    expected = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in model.state_dict().items()}
    assert theirs.keys() == expected.keys()
    assert all(torch.equal(theirs[name], expected[name]) for name in theirs)

    # Files of others have one layer more, which Stable Diffusion does not read, and CLIP's projections.
    more = {
        name.replace("resblocks.1.", "resblocks.2."): value.clone()
        for name, value in weights.items()
        if "resblocks.1." in name
    }
    more |= {"cond_stage_model.model.text_projection": torch.ones(WIDTH, WIDTH)}
    with single_file.open_tensors(file) as opened:
        save_file({**weights, **more}, file, opened.metadata())
    loaded = load_single_file(file).text_encoder.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_another_text_encoder_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got a BertModel to write.*expected CLIP's text encoder; write a folder"):
        save_single_file(sticker_checkpoint(), tmp_path / "model.safetensors")


# ----------------------------------------------------------------------------------------------------------------------
# Memory


PEAK = """
import gc, re, sys
from pathlib import Path
from snapfusion.convert import load

def kilobytes(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

load(Path(sys.argv[1]))  # what is imported late, and the allocator's own
gc.collect()
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
checkpoint, _ = load(Path(sys.argv[2]))
parts = checkpoint.text_encoder, checkpoint.unet, checkpoint.vae
weights = sum(weight.numel() * weight.element_size() for part in parts for weight in part.parameters())
print((kilobytes("VmHWM") - before) * 1024 / weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is read off Linux's /proc")
@pytest.mark.parametrize(("form", "dtype"), [("folder", torch.float16), ("file", torch.float32)])
def test_loading_peaks_little_above_the_weights(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    small = stable_diffusion_checkpoint()
    config = {**small.unet.config, "architecture": Architecture.sd15((96, 192, 384, 384)).to_dict()}
    large = Checkpoint(**{**vars(small), "unet": unet_of(config)})
    paths = []
    for name, checkpoint in (("small", small), ("large", large)):
        path = tmp_path / (f"{name}.safetensors" if form == "file" else name)
        (save_single_file if form == "file" else save_checkpoint)(checkpoint, path, dtype)
        paths.append(str(path))
    result = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    assert 0.9 < float(result.stdout) < 1.3
