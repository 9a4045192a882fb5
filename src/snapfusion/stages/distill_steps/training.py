"""What every run of this stage does: read the caches, train a UNet through `fit`, look at held-out losses, write."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from snapfusion.checkpoint import Checkpoint, hash_of, load_unet, save_checkpoint
from snapfusion.data.pairs import hash_of_set
from snapfusion.fit import Loss, device_of_run, fit
from snapfusion.json_file import write_json
from snapfusion.latents import Cache, Encoders, load_caches, train_and_cells
from snapfusion.model.unet import ElasticUNet
from snapfusion.processes import main_first
from snapfusion.stage_folder import TIMINGS
from snapfusion.stages.distill_steps.config import Training

CHECKPOINT, LICENCES = "checkpoint", "licences.json"
FREE = ("max_seconds", "tracker", "accumulate", "gradient_checkpointing")
"""What may change from one call to the next."""
Measure = Callable[[nn.Module], dict[str, float]]


def inputs(data: Path, **checkpoints: Path) -> dict[str, str]:
    """What a run depends on, as hashes. Raises `ValueError` where `data` holds no set."""
    train_and_cells(data, core=False)
    return {"data": hash_of_set(data)} | {name: hash_of(folder) for name, folder in checkpoints.items()}


def read_caches(config: Training, checkpoint: Checkpoint, data: Path, folder: Path) -> tuple[Cache, Cache]:
    """Pictures to train on and held-out ones, as the checkpoint's encoders see them, on the device of the run."""
    device = device_of_run()
    for encoder in (checkpoint.vae, checkpoint.text_encoder):
        encoder.requires_grad_(False).to(device)  # pyright: ignore[reportArgumentType]
    encoders = Encoders(checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer, checkpoint.length)
    given = (folder, data, config.subset == "core", encoders, config.variants, config.seed)
    train, cells = main_first(lambda: load_caches(*given))
    return train.to(device), cells.to(device)


def train_checkpoint(
    checkpoint: Checkpoint, loss: Loss, measure: Measure, config: Training, folder: Path, name: str
) -> ElasticUNet:
    """Train the checkpoint's UNet, write all of it to `folder / "checkpoint"`, and return the UNet as it was written.

    The held-out losses go to `history.jsonl`. What only a resumption needs goes once the checkpoint is there: so a kill
    at any moment loses neither.
    """
    written = folder / CHECKPOINT
    if not (written / "model_index.json").is_file():
        unet = checkpoint.unet.for_training()
        observe = _recorder(folder / "history.jsonl", measure)
        fitted = fit(unet, loss, config.fit_config(name), folder / "fit", observe, config.observe_steps)
        save_checkpoint(checkpoint, written, torch.float16)
        write_json(folder / TIMINGS, {"images_per_second": fitted.images_per_second})
    shutil.rmtree(folder / "fit", ignore_errors=True)
    return load_unet(written).to(device_of_run())  # pyright: ignore[reportArgumentType]


def carry_licences(source: Path, folder: Path) -> None:
    """Let the checkpoint that a run wrote say of licences what the one says that it came from."""
    if (source / LICENCES).is_file():
        shutil.copyfile(source / LICENCES, folder / CHECKPOINT / LICENCES)


def _recorder(file: Path, measure: Measure) -> Callable[[int, nn.Module], bool]:
    """An observer for `fit` that never stops it, and writes down what it measures."""

    def observe(step: int, unet: nn.Module) -> bool:
        lines = file.read_text().splitlines() if file.exists() else []
        # A run that was killed goes on from before its last look and then looks again.
        kept = [line for line in lines if json.loads(line)["step"] < step]
        partial = file.with_suffix(".partial")
        partial.write_text("\n".join([*kept, json.dumps({"step": step, **measure(unet)})]) + "\n")
        partial.replace(file)
        return False

    return observe
