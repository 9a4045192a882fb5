"""What is drawn and held against what, as a person chooses it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

from snapfusion.checkpoint import hash_of
from snapfusion.data.pairs import hash_of_set, load_index
from snapfusion.diffusion.guidance import POSSIBLE_STOPS
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.diffusion.schedule import check_timestep_shift
from snapfusion.stage_folder import hash_of_file
from snapfusion.stages.evaluate.coco import Reference, choose_captions, pictures_of

Stickers = Literal["headline", "quick", "cells", "concepts"]
Captioned = Literal["coco-2017-5k", "coco-2014-30k", "coco-2014-6k", "captions"]

REAL_PICTURES = 24  # kept of each protocol, to stand beside drawn ones


@dataclass(frozen=True)
class Sources:
    """What models are held against; each protocol needs its own."""

    data: Path | None = None
    """A set of `snapfusion data pairs` or `snapfusion data stickers`."""
    captions: Path | None = None
    """Captions of real pictures: .json as COCO has it, .csv or .txt."""
    pictures: Path | None = None
    """The folder of those real pictures."""


@dataclass(frozen=True)
class Config:
    """What is drawn and how."""

    protocols: tuple[Stickers | Captioned, ...] = ("quick", "cells")
    """headline: 5,000 prompts of `train`, with FID. quick: 1,000 of them. cells, concepts: all of the held-out ones.
    coco-2017-5k, coco-2014-30k, coco-2014-6k: the paper's. captions: all that --captions has."""
    subset: Literal["core", "full"] = "core"
    """The pictures that the model was trained on, and the judges too."""
    steps: int | None = None
    """Steps of the sampler; None for the bundle's own, or as many as the checkpoint was distilled for, or 50."""
    scheduler: Scheduler | None = None
    """What takes the steps; None for the bundle's own, or DDIM."""
    timestep_shift: float | None = None
    """Where those steps are: above 1, more of them where there is more noise; None for the model's own."""
    guidance: float | None = None
    """How closely to follow the prompt; None to choose among `guidances`."""
    guidance_stop: float | None = None
    """Share of the steps that are guided, the first ones; None for the bundle's own, or all."""
    guidances: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0, 6.0)
    """The one with the best alignment by judge A is reported by judge B, on other prompts."""
    guidance_pictures: int = 100
    """Pictures drawn with each of `guidances`."""
    curve: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0, 6.0)
    """Guidances at which the first protocol is measured again, for a curve as in the paper's Fig. 4."""
    curve_pictures: int = 100
    """Pictures drawn with each of `curve`: the protocol's first."""
    clip: str | None = None
    """The CLIP of a CLIP score: vit-g-14 (the paper's), vit-l-14, a name on the hub, or a folder."""
    side: int = 256
    """Pixels to which pictures of captions are brought before FID."""
    reference: Reference = "all"
    """Real pictures of captions for FID: all of the folder, or those that are described."""
    cross_check: int = 0
    """Latents that diffusers' own pipeline draws as well, where a checkpoint has one."""
    batch: int = 8
    """Pictures drawn together; a bundle draws one at a time."""
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    """Torch device of a checkpoint and of the judges; by default a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of a checkpoint's UNet when it draws and is timed; bf16 is faster, and is fp32 where the device has none."""
    runs: int = 5
    """How often each thing is timed."""
    grid: int = 12
    """Prompts whose pictures stand side by side in the report; at most 24."""
    pairs: int = 40
    """Pairs of pictures for people to judge blind."""
    sides: int = 0
    """Seed of which picture of a pair is on the left."""

    def __post_init__(self) -> None:
        if self.guidance_stop is not None and not 0 < self.guidance_stop <= 1:
            raise ValueError(f"got guidance stop {self.guidance_stop:g}, expected {POSSIBLE_STOPS}")
        if self.timestep_shift is not None:
            check_timestep_shift(self.timestep_shift)
        counts = (self.runs, self.batch, self.guidance_pictures)
        tried = (*self.guidances, *self.curve, *(() if self.guidance is None else (self.guidance,)))
        if not self.protocols or min(counts) < 1 or self.curve_pictures < 2 or not all(0 <= one <= 50 for one in tried):
            raise ValueError(
                f"got protocols {self.protocols}, runs, batch and guidance_pictures {counts}, curve_pictures "
                f"{self.curve_pictures} and guidances {tried}, expected a protocol, at least 1 of each, 2 for the "
                "curve, and guidances from 0 to 50"
            )


SHOWN = ("runs", "grid", "pairs", "sides")
"""Fields that change what the report shows and no figure of an evaluation."""


def inputs_of(config: Config, sources: Sources) -> dict[str, str]:
    """SHA-256 of whatever is read besides the models.

    Raises:
        ValueError: a protocol lacks what it needs.
    """
    inputs: dict[str, str] = {}
    for name in config.protocols:
        if name in get_args(Stickers):
            if sources.data is None:
                raise ValueError(f"got protocol {name} and no --data, expected a set of pictures")
            load_index(sources.data)  # refuses what is no set
            inputs["data"] = hash_of_set(sources.data)
        elif sources.captions is None or sources.pictures is None:
            raise ValueError(f"got protocol {name}, expected --captions FILE and --pictures FOLDER with it")
        elif "captions" not in inputs:
            choose_captions(name, sources.captions)
            pictures_of(sources.pictures)
            inputs["captions"] = hash_of_file(sources.captions)
            inputs["pictures"] = hash_of(sources.pictures)
    if config.guidance is None and "data" not in inputs:
        raise ValueError("got no --guidance, expected one: it can only be chosen with a protocol on a sticker set")
    if config.clip is not None and Path(config.clip).is_dir():
        inputs["clip"] = hash_of(Path(config.clip))
    return inputs
