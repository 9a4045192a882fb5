"""What a checkpoint's networks cost before they run: operations, and the bytes that a training step keeps.

Both are counted by torch while the networks run without weights, so the largest checkpoint takes seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from snapfusion.autocast import has_bf16
from snapfusion.checkpoint import Checkpoint
from snapfusion.model.operations import operations_of

HALF = 2  # bytes


@dataclass(frozen=True)
class Cost:
    """Of a network on one row."""

    operations: int
    """Floating-point operations of a forward pass, two a multiply-accumulate."""
    activations: int
    """Bytes that it leaves for a backward pass, in bfloat16."""
    parameters: int


@dataclass(frozen=True)
class Costs:
    """Of a checkpoint's networks. The encoder of pictures is taken for its mirror image, the decoder."""

    unet: Cost
    checkpointed: int
    """Bytes that the UNet leaves for a backward pass that computes activations again."""
    decoder: Cost
    text_encoder: int
    """Its parameters; it reads each prompt once, which takes next to nothing."""
    latent: int
    """Numbers in a latent."""
    picture: int
    """Numbers in a picture."""
    embedding: int
    """Numbers in a prompt's embedding."""
    blocks: int
    """Of the UNet that can be removed."""

    @property
    def parameters(self) -> int:
        """Of the whole checkpoint."""
        return self.text_encoder + self.unet.parameters + 2 * self.decoder.parameters


def costs_of(checkpoint: Checkpoint) -> Costs:
    """What a checkpoint costs, whose networks lose their weights by this."""
    unet, vae, text_encoder = checkpoint.unet, checkpoint.vae, checkpoint.text_encoder
    for network in (unet, vae):
        cast(nn.Module, network).to("meta")
    side = unet.config["sample_size"]
    latent = torch.empty(1, unet.config["in_channels"], side, side, device="meta")
    embedding = torch.empty(1, checkpoint.length, text_encoder.width, device="meta")
    t = torch.empty(1, dtype=torch.int64, device="meta")
    whole = cost_of(unet, lambda: unet(latent, t, embedding))
    unet.enable_gradient_checkpointing()
    return Costs(
        unet=whole,
        checkpointed=activations_of(unet, lambda: unet(latent, t, embedding)),
        decoder=cost_of(vae.decoder, lambda: vae.decode(latent)),
        text_encoder=sum(weight.numel() for weight in text_encoder.parameters()),
        latent=latent.numel(),
        picture=vae.decode(latent).sample.numel(),
        embedding=embedding.numel(),
        blocks=len(unet.removable),
    )


def cost_of(network: nn.Module, call: Callable[[], object]) -> Cost:
    """What `call`, which runs `network` on one row, costs."""
    parameters = sum(weight.numel() for weight in network.parameters())
    return Cost(operations_of(call), activations_of(network, call), parameters)


def activations_of(network: nn.Module, call: Callable[[], object]) -> int:
    """Bytes that `call` keeps for a backward pass through `network`, in bfloat16."""
    weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
    kept: dict[int, Tensor] = {}  # by the place of their storage, which is theirs for as long as they are kept

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage()._cdata) not in weights:
            kept[place] = tensor
        return tensor

    network.requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return HALF * sum(tensor.numel() for tensor in kept.values())


def matrix_speed(side: int = 2048, seconds: float = 0.5) -> float:
    """Operations a second that this device reaches in matrix multiplications: bfloat16, or float32 for want of it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    matrix: Any = torch.randn(side, side, device=device, dtype=torch.bfloat16 if has_bf16(device) else torch.float32)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - before)
    return 2 * side**3 / best
