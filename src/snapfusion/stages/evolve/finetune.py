"""The end of the evolution: the small UNet learns from data and from the whole one.

    loss = L_ori (Eq. 6) + output |v_hat - v_base|^2 + features mean over stages of |h - h_base|^2 / |h_base|^2

The paper only says that training goes on. Distilling the output and the stages' last features is BK-SDM's recipe
(arXiv 2305.15798, section 3.2), which evolution needs no projection for: it never changes a width.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from snapfusion.autocast import autocast
from snapfusion.denoising import Batch, weighted_error
from snapfusion.fit import Fit, FitConfig, Share, fit
from snapfusion.model.level import Level
from snapfusion.model.unet import ElasticUNet
from snapfusion.stages.evolve.robust import Data


@dataclass(frozen=True)
class Distillation:
    """How much the base counts beside the data."""

    output: float = 1.0
    features: float = 0.1


@contextmanager
def stage_features(unet: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """What last left each stage, by the stage's name, filled whenever `unet` runs: `[B, C, h, w]` before resampling.

    Taken by hooks on the stages themselves, so that a copy of `unet` which accelerate has prepared fills it as well.
    """
    features: dict[str, Tensor] = {}

    def keep(level: nn.Module, _: object, hidden: Tensor) -> None:
        assert isinstance(level, Level)
        features[level.stage] = hidden  # a stage runs once a position: the last call stands

    handles = [level.register_forward_hook(keep) for level in unet.modules() if isinstance(level, Level)]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def feature_distance(features: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Tensor:
    """Mean over the stages that both have at the same width of the squared distance, as a share of `base`'s square."""
    shared = [stage for stage in base if stage in features and features[stage].shape == base[stage].shape]
    assert shared, (list(features), list(base))
    distances = [
        (features[stage].float() - base[stage].float()).square().mean() / base[stage].float().square().mean()
        for stage in shared
    ]
    return torch.stack(distances).mean()


def finetuning_loss(
    student: nn.Module, base: ElasticUNet, batch: Batch, weights: Distillation, bf16: bool = False
) -> Tensor:
    """The loss above for one batch; `student` may be what accelerate has made of the network, `base` computes in
    bfloat16 with `bf16`."""
    latent, t, embedding = batch.latent, batch.t, batch.embedding
    with stage_features(base) as wanted, torch.no_grad(), autocast(latent.device, bf16):
        target = base(latent, t, embedding).sample.float()
    with stage_features(student) as features:
        prediction = student(latent, t, embedding).sample.float()
    loss = weighted_error(prediction, batch.target, batch.weight)
    loss = loss + weights.output * weighted_error(prediction, target, batch.weight)
    return loss + weights.features * feature_distance(features, wanted) if weights.features else loss


def finetune(
    student: ElasticUNet, base: ElasticUNet, data: Data, weights: Distillation, config: FitConfig, folder: Path
) -> Fit:
    """Train `student` in place; it is done once, and goes on after a kill: see `fit`."""
    base.requires_grad_(False).eval()
    student.for_training()

    def loss(prepared: nn.Module, step: int, share: Share) -> Tensor:
        return finetuning_loss(prepared, base, data.draw(step, share), weights, config.precision == "bf16")

    return fit(student, loss, config, folder)
