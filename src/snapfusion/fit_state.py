"""What a training run leaves on disk to go on from: weights, moments and averages in one safetensors file."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from snapfusion.fit_shards import part_like, whole
from snapfusion.weights import load_whole, save_whole

STATE = "state.safetensors"


def save(
    accelerator: Accelerator, path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel
) -> None:
    """Write weights, moments and averages as one safetensors file, in the main process; all have to call it."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{index}": value for index, value in enumerate(ema.shadow_params)}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    if not accelerator.is_main_process:
        for value in tensors.values():  # of those in parts, the main process needs this one's
            whole(value)
        return
    plain = {name: whole(value.detach()).cpu().contiguous().clone() for name, value in tensors.items()}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None  # of fp16: how far losses are scaled up
    at = {"step": step, "ema_steps": ema.optimization_step, "scaler": scaler}
    save_whole(plain, path, {"fit": json.dumps(at)})


def restore(
    accelerator: Accelerator, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel
) -> int:
    """Load what `save` wrote, if it is there, and return the step to go on from. A network in parts takes its part."""
    if not path.exists():
        return 0
    metadata, tensors = load_whole(path)
    at = json.loads(metadata["fit"])
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    own = model.state_dict()
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        raise ValueError(f"got the state of another model in {path}, expected this one's; name another output folder")
    model.load_state_dict({name: part_like(value, own[name]) for name, value in weights.items()})
    for index, value in enumerate(ema.shadow_params):
        value.copy_(part_like(tensors[f"ema.{index}"], value))
    ema.optimization_step = at["ema_steps"]
    if accelerator.scaler and at.get("scaler"):
        accelerator.scaler.load_state_dict(at["scaler"])
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".", 2)
            state.setdefault(int(index), {})[moment] = part_like(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return at["step"]
