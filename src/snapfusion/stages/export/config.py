"""What to pack and how, as a person chooses it, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from snapfusion.diffusion.guidance import POSSIBLE_STOPS
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.diffusion.schedule import check_timestep_shift
from snapfusion.runtimes.choice import PARTS, Precision, Runtime

# Subjects and styles that any text-to-image model knows something of.
PROMPTS = (
    "a red fox, 3D render",
    "a blue whale, flat",
    "a green apple, cartoon",
    "a cat, black silhouette",
    "a slice of pizza, 3D render",
    "a sailing boat, flat",
    "a smiling face, cartoon",
    "a bicycle, black silhouette",
    "a yellow flower, 3D render",
    "a castle, flat",
    "an owl, cartoon",
    "a pine tree, black silhouette",
    "a cup of coffee, 3D render",
    "a rainbow over clouds, flat",
    "a dragon, cartoon",
    "a violin, black silhouette",
)


@dataclass(frozen=True)
class Config:
    """What to pack, and how the bundle draws unless told otherwise."""

    name: str | None = None
    """What the bundle is called; by default as the checkpoint's folder."""
    runtime: tuple[Runtime, ...] = ("openvino",)
    """What is to run the networks; a bundle can hold files of several."""
    precision: Precision | None = None
    """How weights are stored. By default int8 for openvino, fp32 for onnx and executorch, fp16 for coreml, bf16 for
    torch. w8a8 rounds what meets them to int8 too; not in the text encoder, which it hurts and hardly speeds up."""
    text_encoder: Precision | None = None
    """Of the text encoder alone. int4-words is int8 with its table of words in 4 bits, for openvino."""
    unet: Precision | None = None
    """Of the UNet alone."""
    vae_decoder: Precision | None = None
    """Of the image decoder alone."""
    w8a8_db: float = 35.0
    """How near to torch w8a8 has to stay, dB: layers are kept in floating point, the worst first, until it does."""
    w8a8_half_range: bool | None = None
    """Whether w8a8 keeps weights to half of int8's range, so that x86 CPUs without VNNI, which add products in 16 bits,
    do not overflow. None for what this CPU needs; who exports for others says so."""
    halves: bool = False
    """For coreml: the UNet as two programs in one package, where a phone's Neural Engine does not take the whole."""
    genai: bool = False
    """Whether to add OpenVINO's own tokenizer, so that OpenVINO GenAI's Text2ImagePipeline draws the bundle, where its
    text encoder is CLIP's. Needs the extra genai."""
    steps: int | None = None
    """Steps of the sampler; by default those that the checkpoint was distilled for, or 50."""
    guidance: float = 7.5
    """How closely to follow the prompt."""
    guidance_stop: float = 1.0
    """Share of the steps that are guided, the first ones; the others take one row of the UNet in place of two."""
    scheduler: Scheduler = "ddim"
    """The sampler."""
    timestep_shift: float | Literal["search"] | None = None
    """Above 1, more of the steps are spent where there is more noise, which few steps want. "search" finds the shift
    that ends nearest to 50 steps, by drawing the prompts; by default as the checkpoint says, which is mostly none."""
    prompts: tuple[str, ...] = PROMPTS
    """What is drawn by torch and by the bundle to hold one against the other."""

    def __post_init__(self) -> None:
        if isinstance(self.timestep_shift, float | int):
            check_timestep_shift(self.timestep_shift)
        if not self.prompts or not all(map(str.strip, self.prompts)):
            raise ValueError("got no --prompts, or a blank one, expected some to hold the bundle against torch by")
        if not 0 < self.guidance_stop <= 1:
            raise ValueError(f"got guidance stop {self.guidance_stop:g}, expected {POSSIBLE_STOPS}")


@dataclass(frozen=True)
class Result:
    """The bundle, and what manifest.json says was measured on it."""

    bundle: Path
    figures: Mapping[str, Any]

    def describe(self) -> str:
        """The parity with torch, a line for each part of each runtime; and what a search for a shift found."""
        lines = [f"{self.bundle}, against torch float32:"]
        if found := self.figures.get("timestep_shift"):
            error, none = (found["relative_error"][f"{shift:g}"] for shift in (found["chosen"], 1.0))
            lines.insert(
                0,
                f"timestep shift {found['chosen']:g}: {found['steps']} steps end {error:.1%} from "
                f"{found['many_steps']}, without it {none:.1%}",
            )
        for runtime, parity in self.figures["parity"].items():
            if "not_run" in parity:
                lines.append(f"{runtime}: not run, because {parity['not_run']}")
                continue
            lines.append(f"{runtime} in {parity['computed_in']}")
            lines += [f"  {part:<14}{_line(parity[part])}" for part in PARTS]
            pictures = parity["pictures"]
            lines.append(f"  {'pictures':<14}{pictures['median_psnr_db']:>6.1f} dB, median of {pictures['n']}")
        return "\n".join(lines)


def _line(figures: Mapping[str, Any]) -> str:
    """A part's figures; not every system tells a process's peak, or lets it open the part at all."""
    peak = f", at most {figures['peak_bytes'] / 1e6:.0f} MB of memory" if "peak_bytes" in figures else ""
    opened = f", opened in {figures['load_seconds']:.2f} s" if "load_seconds" in figures else ""
    return f"{figures['psnr_db']:>6.1f} dB, {figures['bytes'] / 1e6:.1f} MB{opened}{peak}"
