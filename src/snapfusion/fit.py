"""The one training loop: loss -> gradient -> EMA -> save -> resume.

It knows neither network nor data. A loss is a function `loss(model, step) -> scalar tensor` that draws its own batch
from (seed, step), so the run holds no random state, and a run that was killed and started again computes what an
undisturbed one computes.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

STATE = "state.safetensors"
Loss = Callable[[nn.Module, int], Tensor]


@dataclass(frozen=True)
class FitConfig:
    """How long, how fast, how smooth, how often."""

    steps: int
    batch: int  # pictures a step, only to report img/s
    lr: float = 5e-4
    warmup: int = 200  # steps over which the learning rate rises
    decay: int = 0  # last steps over which it falls to zero, along a cosine
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.999
    accumulate: int = 1  # calls of the loss for one step
    precision: str = "bf16"  # "no", "bf16" or "fp16"
    save_seconds: float = 180.0
    log_steps: int = 50
    max_seconds: float = math.inf  # stop cleanly after this long; the same call goes on


@dataclass(frozen=True)
class Fit:
    """Where a call of `fit` ended."""

    step: int
    finished: bool
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
    """Train `model` in place; on return it holds the EMA weights.

    State goes to `folder / "state.safetensors"` every `save_seconds` and at the end, written beside and renamed; the
    same call on the same folder goes on from there. `observe(step, model)` sees the model with its EMA weights every
    `observe_steps` and says whether to stop.

    Raises:
        ValueError: the loss is not finite (the last good state stays on disk), or the state is of another model.
    """
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        log_with="tensorboard",
        project_dir=str(folder),
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    ema = EMAModel(model.parameters(), decay=config.ema, use_ema_warmup=True, power=0.75, foreach=True)
    step = restore(folder / STATE, model, optimizer, ema)
    ema.to(accelerator.device)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.init_trackers("tensorboard")

    started = saved = reported = time.monotonic()
    first, losses, rate, mean, stop = step, [], 0.0, math.nan, False
    while not stop and step < config.steps and time.monotonic() - started < config.max_seconds:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        for part in range(config.accumulate):
            with accelerator.accumulate(prepared):
                value = loss(prepared, step * config.accumulate + part)
                losses.append(value.detach())
                accelerator.backward(value)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared.parameters(), config.clip)
                optimizer.step()
                optimizer.zero_grad()
        ema.step(model.parameters())
        step += 1

        save_due = time.monotonic() - saved > config.save_seconds
        log_due = step % config.log_steps == 0 or step == config.steps
        if losses and (save_due or log_due):  # what is not finite must not reach the disk
            mean = finite_mean(losses, step, folder)
        if log_due:
            rate = config.batch * (step - first) / (time.monotonic() - reported)
            left = (config.steps - step) * config.batch / rate / 60
            log.info("step %d/%d  loss %.4f  %.1f img/s  %.0f min left", step, config.steps, mean, rate, left)
            accelerator.log({"loss": mean, "images_per_second": rate, "lr": learning_rate(step, config)}, step)
            first, losses, reported = step, [], time.monotonic()
        if accelerator.is_main_process:
            if save_due:
                save(folder / STATE, step, model, optimizer, ema)
                saved = time.monotonic()
            if observe is not None and step % observe_steps == 0:
                ema.store(model.parameters())
                ema.copy_to(model.parameters())
                stop = observe(step, model)
                ema.restore(model.parameters())

    mean = finite_mean(losses, step, folder) if losses else mean
    if accelerator.is_main_process:
        save(folder / STATE, step, model, optimizer, ema)
    ema.copy_to(model.parameters())
    accelerator.end_training()
    return Fit(step=step, finished=stop or step >= config.steps, loss=mean, images_per_second=rate)


def finite_mean(losses: list[Tensor], step: int, folder: Path) -> float:
    """The mean of the losses since the last report. Raises `ValueError` where one of them is not finite."""
    mean = torch.stack(losses).mean().item()
    if not math.isfinite(mean):
        raise ValueError(
            f"got a loss of {mean} at step {step}, expected a finite one; the state of the last save is in {folder}: "
            "run again with a lower learning rate"
        )
    return mean


def save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel) -> None:
    """Write weights, moments and averages as one safetensors file: whole or not at all."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{index}": value for index, value in enumerate(ema.shadow_params)}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(plain, partial, metadata={"fit": json.dumps({"step": step, "ema_steps": ema.optimization_step})})
    partial.replace(path)


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel) -> int:
    """Load what `save` wrote, if it is there, and return the step to go on from."""
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        at = json.loads(file.metadata()["fit"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    if {name: value.shape for name, value in weights.items()} != {n: v.shape for n, v in model.state_dict().items()}:
        raise ValueError(f"got the state of another model in {path}, expected this one's; name another output folder")
    model.load_state_dict(weights)
    for index, value in enumerate(ema.shadow_params):
        value.copy_(tensors[f"ema.{index}"])
    ema.optimization_step = at["ema_steps"]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".", 2)
            state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return at["step"]
