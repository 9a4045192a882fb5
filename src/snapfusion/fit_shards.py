"""FSDP: a training whose weights, moments and averages lie in as many parts as there are processes.

`accelerate launch --use_fsdp` asks for it, and accelerate does it, the second way (PyTorch's `fully_shard`): every
parameter is a `DTensor` of which each process holds a part. What is written to disk and handed back is whole again.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, parse_flag_from_env
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from snapfusion.processes import count

Network = TypeVar("Network", bound=nn.Module)


def asked_for() -> FullyShardedDataParallelPlugin | None:
    """What accelerate is to be told of shards: None where nobody asked for them, or there is nobody to share with."""
    if count() == 1 or not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )


def allow_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None, precision: str) -> None:
    """Let CPU processes shard as GPUs do: PyTorch can, and accelerate by itself would share out whole networks."""
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        if precision != "no":
            plugin.set_mixed_precision(precision)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin


def trained_copy(accelerator: Accelerator, network: Network) -> Network:
    """What to train for `network`: itself, or where it will lie in parts, a copy, while `network` waits on the CPU."""
    if not accelerator.is_fsdp2:
        return network
    return copy.deepcopy(network.cpu())


def whole(value: Tensor) -> Tensor:
    """All of a tensor; of one in parts they are gathered, so every process has to ask for it."""
    # Parts arrive in the background, and who went on without them would take their bytes for something else's: the copy
    # waits for them.
    return value.full_tensor().detach().clone() if isinstance(value, DTensor) else value


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole `value` as `like` lies: this process's part of it where that is in parts."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    # Nothing is sent: every process has read the same file.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def averaged(network: nn.Module, trained: nn.Module, ema: EMAModel, device: torch.device) -> Iterator[None]:
    """For a look at `network`: with the averages of what is trained for it, which goes on as it was."""
    if trained is network:
        ema.store(network.parameters())
        ema.copy_to(network.parameters())
        yield
        ema.restore(network.parameters())
    else:
        hand_back(network, ema, device)
        yield
        network.cpu()


@torch.no_grad()
def hand_back(network: nn.Module, ema: EMAModel, device: torch.device) -> None:
    """Give `network` the averages, whole, in every process."""
    for parameter, average in zip(network.parameters(), ema.shadow_params, strict=True):
        parameter.copy_(whole(average))
    network.to(device)
