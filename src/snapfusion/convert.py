"""Checkpoints as people have them: a folder, a single file or a hub's name, with LoRAs, from one form to another."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from snapfusion.checkpoint import TEXT_WEIGHTS, WEIGHTS, Checkpoint, hash_of, load_checkpoint, save_checkpoint
from snapfusion.json_file import read_json, write_json
from snapfusion.lora import Lora, merge
from snapfusion.single_file import LICENCES, load_single_file, read_header, save_single_file
from snapfusion.stage_folder import hash_of_file, run_in_folder
from snapfusion.weights import PICKLES, files_of, widest_dtype

Precision = Literal["float32", "float16", "bfloat16"]
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SINGLE_FILE = ".safetensors"


@dataclass(frozen=True)
class Config:
    """What `as_folder` does beside changing the form."""

    scales: tuple[float, ...]
    """Of the LoRAs."""


def load(given: Path, loras: Sequence[Lora] = ()) -> tuple[Checkpoint, list[str]]:
    """A checkpoint in any form (see `find`), LoRAs merged in their order; and a line on each LoRA."""
    found = find(given)
    checkpoint = load_checkpoint(found) if found.is_dir() else load_single_file(found)
    return checkpoint, [merge(checkpoint, lora).describe() for lora in loras]


def convert(given: Path, out: Path, loras: Sequence[Lora] = (), precision: Precision | None = None) -> list[str]:
    """Write a checkpoint to `out`: one file if its name ends in .safetensors, else a folder in diffusers' layout.

    `precision` is by default the widest that the given weights have, so that nothing is lost. Returns what there is to
    say. Raises `ValueError` where `out` is there already.
    """
    if out.exists():
        raise ValueError(f"got --out {out}, which is there already; remove it or give another name")
    if out.suffix in PICKLES:
        raise ValueError(f"got --out {out}, expected a name that ends in {SINGLE_FILE}, or a folder's")
    found = find(given)
    checkpoint, said = load(found, loras)
    dtype = getattr(torch, precision) if precision else stored_dtype(found)
    licences = licences_of(found)
    if out.suffix == SINGLE_FILE:
        save_single_file(checkpoint, out, dtype, licences)
    else:
        if licences:
            write_json(out / LICENCES, licences)
        save_checkpoint(checkpoint, out, dtype)
    return [*said, f"{out}: {str(dtype).removeprefix('torch.')}"]


def as_folder(given: Path, loras: Sequence[Lora], work: Path) -> Path:
    """The folder in diffusers' layout that stages read: the given one, or what is made of it below `work`, once."""
    found = find(given)
    if found.is_dir() and not loras:
        return found
    name = found.resolve().name.partition(".")[0] or "checkpoint"
    inputs = {"checkpoint": hash_of(found) if found.is_dir() else hash_of_file(found)}
    inputs |= {f"lora {place}": hash_of_file(lora.file) for place, lora in enumerate(loras, 1) if lora.file.is_file()}

    def make(folder: Path) -> dict[str, Any]:
        shutil.rmtree(folder / name, ignore_errors=True)  # what a kill left
        return {"said": convert(found, folder / name, loras)[:-1]}

    for line in run_in_folder(work, Config(tuple(lora.scale for lora in loras)), inputs, make)["said"]:
        print(line)
    return work / name


def find(given: Path) -> Path:
    """The folder or file that is meant: `given`, or where the hub's files of that name are kept, fetched if need be."""
    if given.exists():
        return given
    if not HUB_NAME.fullmatch(given.as_posix()):
        raise ValueError(f"got {given}, expected a folder in diffusers' layout, a {SINGLE_FILE} or a hub's name")
    # Seconds of imports, which only this needs.
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.utils import logging
    from huggingface_hub.errors import HfHubHTTPError

    logging.set_verbosity_error()  # its warnings are what the error below says
    try:
        # What nobody reads here is passed as None, and so not fetched.
        unread: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
        return Path(DiffusionPipeline.download(given.as_posix(), use_safetensors=True, **unread))
    except (OSError, ValueError, AttributeError, HfHubHTTPError) as error:
        cause = type(error.__cause__ or error).__name__
        expected = "expected a folder, a file, or the name of a checkpoint on a hub that can be reached"
        raise ValueError(f"got {given}, which is not here, {expected} ({cause})") from error


def stored_dtype(found: Path) -> torch.dtype:
    """The type that holds all of a checkpoint's weights without loss."""
    if found.is_file():
        return widest_dtype([found])
    stems = {"text_encoder": TEXT_WEIGHTS, "unet": WEIGHTS, "vae": WEIGHTS}
    return widest_dtype(file for part, stem in stems.items() for file in files_of(found / part, stem))


def licences_of(found: Path) -> dict[str, Any]:
    """What a checkpoint says of its licences."""
    if found.is_file():
        return read_header(found)[1].get(LICENCES) or {}
    return read_json(found / LICENCES) if (found / LICENCES).is_file() else {}
