"""The teacher's pictures of the latents, drawn once: a latent is met many times, and drawing costs more than learning.

They are on disk, where a large decoder's do not fit into memory: 4,000 pictures of 512x512 are 6 GB.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from snapfusion.autocast import autocast
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.stages.distill_decoder.distance import image_of
from snapfusion.stages.distill_decoder.latents import complete
from snapfusion.weights import open_tensors

NAME = "targets"


class Targets:
    """`[N, 3, H, W]` float16, about -1..1 and not clamped, in files of as many pictures as were drawn together."""

    def __init__(self, folder: Path, count: int, together: int):
        self.together = together
        self.files = [folder / f"{first:07}.safetensors" for first in range(0, count, together)]

    def draw(self, teacher: PatchAutoencoderKL, latents: Tensor, bf16: bool, until: float) -> None:
        """Write the pictures of latents `[N, C, h, w]`, scaled, that are missing; raises what `complete` does."""
        parts = latents.split(self.together)

        @torch.no_grad()
        def drawn(number: int) -> Tensor:
            latent = parts[number].float().to(teacher.device)
            with autocast(teacher.device, bf16):
                return image_of(teacher.decoder, teacher, latent)

        complete(NAME, self.files, drawn, until)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        """`[B, 3, H, W]` float32."""
        return torch.stack([self._one(*divmod(row, self.together)) for row in rows]).float()

    def _one(self, file: int, row: int) -> Tensor:
        with open_tensors(self.files[file]) as opened:
            return opened.get_slice(NAME)[row]
