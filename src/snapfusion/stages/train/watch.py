"""Looks at a UNet while it trains, remembers the best weights, and says when to stop."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from snapfusion.latents import HALF_MIRRORED, Cache, Shares
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.sampling import Sampling, decode, noise_of, pixels, sample_latents
from snapfusion.stages.train.sheet import PROMPTS, held_out_loss, tile
from snapfusion.stages.train.unet import sticker_schedule
from snapfusion.weights import write_weights

log = logging.getLogger(__name__)

SAMPLING = Sampling(steps=20, guidance=4.0, bf16=True)


class Watch:
    """Looks at the EMA weights: held-out loss to history.jsonl, a sheet to sheets/, the best weights kept."""

    def __init__(
        self,
        folder: Path,
        batch: int,
        patience: int,
        cache: Cache,
        held_out: Cache,
        vae: PatchAutoencoderKL,
        embedding: torch.Tensor,
        shares: Shares = HALF_MIRRORED,
    ):
        self.folder, self.batch, self.patience, self.vae, self.shares = folder, batch, patience, vae, shares
        self.held_out, self.schedule = held_out, sticker_schedule()
        self.empty, self.embedding = cache.embeddings[:1].to(embedding.device).float(), embedding.float()
        self.noise = noise_of(cache.latents.shape[1:], range(len(PROMPTS))).to(embedding.device)
        self.history, self.best = folder / "history.jsonl", folder / "best.safetensors"

    def __call__(self, step: int, unet: nn.Module) -> bool:
        """Look, and say whether to stop."""
        loss = self.loss_of(unet.eval())
        latent = sample_latents(unet, self.schedule, self.embedding, self.empty, self.noise, SAMPLING)
        unet.train()
        (self.folder / "sheets").mkdir(parents=True, exist_ok=True)
        tile(pixels(decode(self.vae, latent)), columns=8).save(self.folder / "sheets" / f"{step:06d}.webp", quality=85)
        # A run that was killed goes on from before its last look and then looks again.
        looks = [look for look in self.looks() if look["step"] < step]
        looks.append({"step": step, "images": step * self.batch, "held_out_loss": loss})
        losses = [look["held_out_loss"] for look in looks]
        best = int(np.argmin(losses))
        log.info("step %d  held-out loss %.4f (best so far %.4f)", step, loss, losses[best])
        if best == len(looks) - 1:  # before the history says so
            write_weights(unet.state_dict(), self.best.with_suffix(".partial"), torch.float32)
            self.best.with_suffix(".partial").replace(self.best)
        partial = self.history.with_suffix(".partial")
        partial.write_text("".join(json.dumps(look) + "\n" for look in looks))
        partial.replace(self.history)
        return len(looks) - 1 - best >= self.patience

    def loss_of(self, unet: nn.Module) -> float:
        """The held-out loss of these weights."""
        return held_out_loss(unet, self.held_out, self.schedule, self.shares)

    def looks(self) -> list[dict[str, Any]]:
        """What earlier looks saw, also those of a run that was killed."""
        return [json.loads(line) for line in self.history.read_text().splitlines()] if self.history.exists() else []

    def restore(self, unet: nn.Module) -> float:
        """Put the weights with the best held-out loss into `unet`, if any look was taken, and return that loss."""
        looks = self.looks()
        if not looks:
            return self.loss_of(unet)
        unet.load_state_dict(load_file(self.best))
        return min(look["held_out_loss"] for look in looks)
