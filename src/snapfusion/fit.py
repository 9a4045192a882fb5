"""The one training loop: loss -> gradient -> EMA -> save -> resume, on as many processes as accelerate started.

It knows neither network nor data. A loss is a function `loss(model, step, share) -> scalar tensor`: it draws the batch
of that step from (seed, step) and takes the mean over the rows of its share. So the run holds no random state, a run
that was killed and started again computes what an undisturbed one computes. Neither the number of processes nor
accumulation changes what a mean over rows comes to; a loss that divides by a mean (Eq. 11's gamma) does so share by
share.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType, broadcast
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from snapfusion.autocast import precision_on
from snapfusion.fit_shards import allow_on_cpu, asked_for, averaged, hand_back, trained_copy
from snapfusion.fit_state import STATE, restore, save
from snapfusion.memory import keep_freed_memory
from snapfusion.processes import on_cpu
from snapfusion.progress import progress
from snapfusion.stage_folder import CURVES, PausedError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """One of `count` equal parts of a step's batch: what one process computes in one call of the loss.

    Whatever is random is drawn for the whole batch, and `batch[share.rows]` is taken of it.
    """

    index: int = 0
    count: int = 1

    @property
    def rows(self) -> slice:
        """Every `count`-th row, so that what is drawn in layers, as noise levels are, is so in every share."""
        return slice(self.index, None, self.count)


WHOLE = Share()
Loss = Callable[[nn.Module, int, Share], Tensor]


@dataclass(frozen=True)
class FitConfig:
    """How long, how fast, how smooth, how often."""

    steps: int
    batch: int  # pictures a step, over all processes and parts
    lr: float = 5e-4
    warmup: int = 200  # steps over which the learning rate rises
    decay: int = 0  # last steps over which it falls to zero, along a cosine
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.999
    accumulate: int = 1  # parts in which a process computes its rows of a step, to save memory
    gradient_checkpointing: bool = False  # compute activations twice, to save memory
    skips_blocks: bool = False  # whether a step may leave some parameters unused
    precision: str = "bf16"  # "no", "bf16" or "fp16"
    save_seconds: float = 180.0
    log_steps: int = 50
    tracker: str | None = "tensorboard"  # any that accelerate knows by name
    max_seconds: float = math.inf  # stop cleanly after this long; the same call goes on
    name: str = "training"  # what people see beside the progress


@dataclass(frozen=True)
class Fit:
    """What a finished call of `fit` came to."""

    step: int
    loss: float  # mean over the last reports
    images_per_second: float


def learning_rate(step: int, config: FitConfig) -> float:
    """Linear warm-up, a plateau, and a cosine to zero over the last `config.decay` steps."""
    rise = min((step + 1) / max(config.warmup, 1), 1.0)
    left = config.steps - step
    fall = 0.5 - 0.5 * math.cos(math.pi * left / config.decay) if left < config.decay else 1.0
    return config.lr * rise * fall


def fit(
    model: nn.Module,
    loss: Loss,
    config: FitConfig,
    folder: Path,
    observe: Callable[[int, nn.Module], bool] | None = None,
    observe_steps: int = 1000,
) -> Fit:
    """Train `model` in place; when it is done or pauses, `model` holds the EMA weights.

    State goes to `folder / "state.safetensors"` every `save_seconds` and at the end, whole or not at all; the same call
    on the same folder goes on from there. `observe(step, model)` sees the model with its EMA weights every
    `observe_steps`, in the main process, and says whether to stop; a step that a call goes on from it sees again.

    Raises:
        ValueError: the loss is not finite (the last good state stays on disk), the state is of another model, or the
            batch does not divide into equal shares.
        PausedError: `max_seconds` are over before the last step; what was reached is saved.
    """
    keep_freed_memory()
    accelerator = begin(config, folder)
    if config.gradient_checkpointing:
        cast(ModelMixin, model).enable_gradient_checkpointing()
    trained = trained_copy(accelerator, model)
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    prepared, prepared_optimizer = accelerator.prepare(trained, optimizer)
    ema = EMAModel(trained.parameters(), decay=config.ema, use_ema_warmup=True, power=0.75, foreach=True)
    step = restore(accelerator, folder / STATE, trained, optimizer, ema)

    def look() -> bool:
        """Whether who observes says to stop at this step."""
        if observe is None or step == 0 or step % observe_steps:
            return False
        with averaged(model, trained, ema, accelerator.device):
            (stop,) = agreed(accelerator, accelerator.is_main_process and observe(step, model))
        return stop

    stop = look()  # again, where a kill may have come between the save and the look
    started = saved = reported = time.monotonic()
    first, losses, rate, mean, paused = step, [], 0.0, math.nan, False
    with progress(config.name, step, config.steps) as show:
        while not (stop or paused or step >= config.steps):
            losses += take_step(accelerator, prepared, prepared_optimizer, loss, step, config)
            ema.step(trained.parameters())
            step += 1

            now = time.monotonic()
            save_due, paused = agreed(
                accelerator, now - saved > config.save_seconds, now - started > config.max_seconds
            )
            log_due = paused or step % config.log_steps == 0 or step == config.steps
            if save_due or log_due:  # what is not finite must not reach the disk
                mean = finite_mean(accelerator, losses, step, folder)
            if log_due:
                rate = config.batch * (step - first) / (now - reported)
                show(step, mean, rate)
                accelerator.log({"loss": mean, "images_per_second": rate, "lr": learning_rate(step, config)}, step)
                first, losses, reported = step, [], now
            else:
                show(step)
            if save_due:
                save(accelerator, folder / STATE, step, trained, optimizer, ema)
                saved = time.monotonic()
            stop = look()

    if losses:
        mean = finite_mean(accelerator, losses, step, folder)
    save(accelerator, folder / STATE, step, trained, optimizer, ema)
    hand_back(model, ema, accelerator.device)
    end(accelerator)
    if paused and not stop and step < config.steps:
        raise PausedError(f"{config.name} paused at step {step} of {config.steps}; run the same command to go on")
    return Fit(step, mean, rate)


def device_of_run() -> torch.device:
    """Where all that trains computes: a GPU of CUDA's; the CPU if there is none, or accelerate was told to leave it."""
    return torch.device("cpu" if on_cpu() else "cuda")


def begin(config: FitConfig, folder: Path) -> Accelerator:
    """accelerate, with its tracker started."""
    trackers = [name for name in LoggerType.list() if name != "all"]
    if config.tracker not in (None, *trackers):
        raise ValueError(f"got tracker {config.tracker!r}, expected one of {', '.join(trackers)}")
    # accelerate holds a process to the precision of its first training; here every training names its own.
    AcceleratorState._reset_state()
    device, precision = device_of_run(), precision_on(device_of_run(), config.precision)
    if precision != config.precision:
        log.info("%s in float32: %s has no fast bfloat16", config.name, device.type)
    accelerator = Accelerator(
        cpu=on_cpu(),  # where data and teachers are too; accelerate's own choice might be a third device
        mixed_precision=precision,
        gradient_accumulation_steps=config.accumulate,
        log_with=config.tracker,
        project_dir=str(folder.parent / CURVES / folder.name),  # `folder` goes when its stage is done
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.skips_blocks)],
        fsdp_plugin=(plugin := asked_for()),
    )
    allow_on_cpu(accelerator, plugin, precision)
    if config.batch % (shares := config.accumulate * accelerator.num_processes):
        raise ValueError(f"got a batch of {config.batch}, expected one that divides into {shares} equal shares")
    accelerator.init_trackers("snapfusion")
    return accelerator


def end(accelerator: Accelerator) -> None:
    """Wait for the main process to have saved. The process group stays: the next stage trains in it too."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    accelerator.free_memory()  # of a GPU: the next stage needs it


def take_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    step: int,
    config: FitConfig,
) -> list[Tensor]:
    """Move the weights once; returns the losses of this process's shares."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    processes, losses = accelerator.num_processes, []
    for part in range(config.accumulate):
        with accelerator.accumulate(model):
            value = loss(
                model, step, Share(part * processes + accelerator.process_index, config.accumulate * processes)
            )
            losses.append(value.detach())
            accelerator.backward(value)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def agreed(accelerator: Accelerator, *answers: bool) -> list[bool]:
    """The main process's answers in every process: their clocks differ, and all have to do the same."""
    if accelerator.num_processes == 1:
        return list(answers)
    return [bool(answer) for answer in broadcast(torch.tensor(answers, dtype=torch.int, device=accelerator.device))]


def finite_mean(accelerator: Accelerator, losses: list[Tensor], step: int, folder: Path) -> float:
    """The mean over all processes since the last report. Raises `ValueError` where a loss is not finite."""
    mean = cast(Tensor, accelerator.reduce(torch.stack(losses).mean().float(), "mean")).item()
    if not math.isfinite(mean):
        raise ValueError(
            f"got a loss of {mean} at step {step}, expected a finite one; the state of the last save is in {folder}: "
            "run again with a lower learning rate and another --out"
        )
    return mean
