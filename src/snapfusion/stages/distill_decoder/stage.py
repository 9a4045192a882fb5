"""A narrow image decoder: sample latents by prompts, prune, distil, measure on latents that it never saw."""

import hashlib
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from snapfusion.checkpoint import Checkpoint, hash_of, load_checkpoint, load_vae, save_checkpoint
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.diffusion.schedule import check_timestep_shift
from snapfusion.fit import FitConfig, Share, device_of_run, fit
from snapfusion.json_file import write_json
from snapfusion.metrics.lpips import load_lpips
from snapfusion.model.decoder import PatchAutoencoderKL
from snapfusion.processes import count
from snapfusion.sampling import Sampling
from snapfusion.stage_folder import TIMINGS, run_in_folder
from snapfusion.stages.distill_decoder.distance import closeness, distillation_loss, draw_rows, image_of, seen_distance
from snapfusion.stages.distill_decoder.latents import Plan, divide, draw, load, read_prompts
from snapfusion.stages.distill_decoder.prune import Criterion
from snapfusion.stages.distill_decoder.students import half, tiny
from snapfusion.stages.distill_decoder.targets import Targets

DRAWS = ("tokenizer", "text_encoder", "unet", "scheduler")
"""The parts of a checkpoint that its latents depend on."""
LICENCES = "licences.json"
FIT, TARGETS = "fit", "targets"
"""What the training leaves in the stage's folder until it is done."""
FREE = ("max_seconds", "accumulate", "gradient_checkpointing", "tracker")
"""What may change from one call to the next."""
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Config:
    """Which decoder, from how many latents, trained for how long."""

    student: Literal["half", "tiny"] = "half"
    """half: the checkpoint's own decoder at half its widths, as in the paper. tiny: AutoencoderTiny's, from nothing."""
    criterion: Criterion = "spread"
    """Which half of the channels stays: of every strength alike, or (to compare with) the strongest, or any."""
    subset: Literal["core", "full"] = "core"
    """Whose prompts latents are drawn of, where they are a sticker set's: what the base has learned."""
    latents: int = 4000
    """How many are drawn to train on."""
    held_out: int = 256
    """How many are drawn to measure on, from prompts that are not trained on."""
    steps: int = 50
    """Steps to a latent."""
    guidance: float = 7.5
    """Guidance of those steps."""
    scheduler: Scheduler = "ddim"
    """The sampler of those steps."""
    timestep_shift: float | None = None
    """Above 1, more of those steps are spent where there is more noise, which few steps want; by default as the
    checkpoint says, which is mostly none."""
    drawn_together: int = 16
    """Latents of a batch, which is also what a file holds and what is lost when the run is killed."""
    images: int = 64_000
    """Pictures that the student sees in all."""
    batch: int = 8
    lr: float = 5e-4
    warmup: int = 100
    """Steps over which the learning rate rises; it falls to zero, along a cosine, over the second half of all."""
    ema: float = 0.998
    lpips_weight: float = 0.0
    """Weight of LPIPS (VGG16, on a 64 px square) beside the squared error."""
    precision: Literal["no", "bf16"] = "bf16"
    """What the UNet and both decoders compute in while latents are drawn and the student is trained."""
    accumulate: int = 1
    """Parts in which a batch is computed, to save memory."""
    gradient_checkpointing: bool = False
    """Compute activations twice, to save memory."""
    tracker: str | None = "tensorboard"
    """What draws the curves: any that accelerate knows by name."""
    seed: int = 0
    max_seconds: float = math.inf
    """Stop cleanly after this long; the same command goes on."""

    def __post_init__(self) -> None:
        for name in ("latents", "held_out", "drawn_together", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"got --{name.replace('_', '-')} {getattr(self, name)}, expected at least 1")
        if self.images < self.batch:
            raise ValueError(f"got --images {self.images}, expected at least a batch of {self.batch}")
        if self.timestep_shift is not None:
            check_timestep_shift(self.timestep_shift)


@dataclass(frozen=True)
class Result:
    """The checkpoint with the new decoder, and what was measured on it."""

    checkpoint: Path
    figures: Mapping[str, Any]

    def describe(self) -> str:
        """Size and closeness, in a line."""
        at = self.figures
        size = f"decoder {at['parameters_ratio']:.2f} times smaller"
        near = f"{at['psnr_db']:.1f} dB, {at['psnr_drawn_db']:.1f} dB where drawn, LPIPS {at['lpips']:.3f}"
        return f"{self.checkpoint}: {size}; on {at['held_out']} held-out latents {near}"


def run(
    config: Config,
    checkpoint: Path,
    prompts: Path,
    out: Path,
    latents_folder: Path | None = None,
    cache: Path | None = None,
) -> Result:
    """Give the checkpoint in folder `checkpoint` another image decoder and write it to `out / "checkpoint"`.

    Args:
        config: See `Config`.
        checkpoint: A folder in diffusers' layout. Its encoder, UNet and text encoder come out as they were.
        prompts: A text file, one prompt a line, or a built sticker set, whose training prompts are taken.
        out: The stage's folder.
        latents_folder: Where latents are drawn to, and read from if they are there; by default `out / "latents"`. A
            second student of the same base saves their time.
        cache: Of LPIPS' network: see `snapfusion.metrics.weights`.

    Raises:
        ValueError: see `run_in_folder`; and where prompts or checkpoint are not as expected.
        PausedError: `config.max_seconds` are over; the same call goes on.
    """
    if latents_folder is not None and count() > 1:
        raise ValueError(f"got --latents-folder in {count()} processes, expected one process: each draws into its own")
    asked = read_prompts(prompts, core=config.subset == "core")
    inputs = {"checkpoint": hash_of(checkpoint), "prompts": hashlib.sha256("\n".join(asked).encode()).hexdigest()}
    until = time.monotonic() + config.max_seconds

    def work(folder: Path) -> dict[str, Any]:
        base = load_checkpoint(checkpoint)
        for network in (base.text_encoder, base.unet, base.vae):
            placed(network).requires_grad_(False)
        sources = {**{part: hash_of(checkpoint / part) for part in DRAWS}, "prompts": inputs["prompts"]}
        drawn = sample(config, base, asked, sources, latents_folder or folder / "latents", until)
        made = folder / "checkpoint"
        if not (made / "model_index.json").is_file():
            trained = train(config, base.vae, load(drawn, "train"), folder, until, cache)
            save(replace(base, vae=trained), narrowest(base), checkpoint, made)
        student = placed(load_vae(made))  # as everybody else will have it, rounded to what is on disk
        figures = measure(config, base.vae, student, load(drawn, "held-out"), cache)
        for passing in (FIT, TARGETS):  # several times the decoder, and thousands of pictures
            shutil.rmtree(folder / passing, ignore_errors=True)
        return {**figures, "latents": config.latents, "held_out": config.held_out, "prompts": len(asked)}

    return Result(out / "checkpoint", run_in_folder(out, config, inputs, work, FREE))


def sample(
    config: Config, base: Checkpoint, prompts: list[str], inputs: Mapping[str, str], folder: Path, until: float
) -> Path:
    """The folder of the latents, drawn first as far as they are not there: a stage's folder in itself."""
    sampling = Sampling(config.steps, config.guidance, config.scheduler, bf16=config.precision == "bf16")
    plan = Plan(config.latents, config.held_out, config.drawn_together, sampling, config.timestep_shift, config.seed)
    if config.timestep_shift is not None:  # for these latents alone: what is written keeps its own steps
        base = replace(base, schedule=base.schedule.placed(config.timestep_shift))

    def work(partial: Path) -> dict[str, Any]:
        draw(base, divide(prompts, config.seed), plan, partial, until)
        return {"latents": config.latents, "held_out": config.held_out}

    run_in_folder(folder, plan, inputs, work)
    return folder


def begin(config: Config, vae: PatchAutoencoderKL) -> PatchAutoencoderKL:
    """The student before its training."""
    return half(vae, config.criterion, config.seed) if config.student == "half" else tiny(vae, config.seed)


def train(
    config: Config, teacher: PatchAutoencoderKL, latents: Tensor, folder: Path, until: float, cache: Path | None
) -> PatchAutoencoderKL:
    """A student whose decoder draws what the teacher's draws of `latents` `[N, C, h, w]`; nothing else of it moves."""
    student = placed(begin(config, teacher)).requires_grad_(False)
    decoder, device = student.decoder.requires_grad_(True).train(), device_of_run()
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    lpips = placed(load_lpips(cache=cache)) if config.lpips_weight else None

    targets = Targets(folder / TARGETS, len(latents), config.drawn_together)
    targets.draw(teacher, latents, config.precision == "bf16", until)

    def loss(prepared: nn.Module, step: int, share: Share) -> Tensor:
        rows = draw_rows(len(latents), config.batch, config.seed, step)[share.rows]
        target = targets[rows].to(device)
        image = image_of(prepared, student, latents[rows].float().to(device))
        distance = distillation_loss(image, target)
        if lpips is not None:
            distance = distance + config.lpips_weight * seen_distance(image, target, lpips, config.seed, step)
        return distance

    steps = config.images // config.batch
    settings = FitConfig(
        steps,
        config.batch,
        config.lr,
        config.warmup,
        decay=steps // 2,
        ema=config.ema,
        accumulate=config.accumulate,
        precision=config.precision,
        tracker=config.tracker,
        max_seconds=until - time.monotonic(),
        name="decoder",
    )
    fitted = fit(decoder, loss, settings, folder / FIT)
    write_json(folder / TIMINGS, {"images_per_second": fitted.images_per_second})
    return student.eval()


def measure(
    config: Config, teacher: PatchAutoencoderKL, student: PatchAutoencoderKL, latents: Tensor, cache: Path | None
) -> dict[str, float]:
    """Parameters of both decoders, and how near the student comes on held-out latents: trained, and before that."""
    lpips = placed(load_lpips(cache=cache))
    sizes = [sum(weight.numel() for weight in vae.decoder.parameters()) for vae in (teacher, student)]
    before = closeness(placed(begin(config, teacher)), teacher, latents, lpips)
    return {
        **closeness(student, teacher, latents, lpips),
        "psnr_before_db": before["psnr_db"],
        "parameters": sizes[1],
        "parameters_before": sizes[0],
        "parameters_ratio": round(sizes[0] / sizes[1], 4),
    }


def save(checkpoint: Checkpoint, dtype: torch.dtype, source: Path, folder: Path) -> None:
    """Write a checkpoint with the licences that its source has; model_index.json last."""
    folder.mkdir(exist_ok=True)
    if (source / LICENCES).is_file():
        shutil.copyfile(source / LICENCES, folder / LICENCES)
    save_checkpoint(checkpoint, folder, dtype)


def narrowest(base: Checkpoint) -> torch.dtype:
    """float16 if it holds every weight of the checkpoint exactly, else float32: what stays must stay to the bit."""
    networks: tuple[nn.Module, ...] = (base.text_encoder, base.unet, base.vae)
    weights = [weight for network in networks for weight in network.parameters()]
    return torch.float16 if all(torch.equal(weight.half().float(), weight) for weight in weights) else torch.float32


def placed(network: Network) -> Network:
    """The network, moved to where this process computes."""
    nn.Module.to(network, device_of_run())
    return network
