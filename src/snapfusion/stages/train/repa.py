"""Representation alignment (REPA, Yu et al. 2024, arXiv:2410.06940): a second aim while a UNet is trained.

From a noisy latent and a prompt, the UNet is to know what a frozen image network sees in the clean picture: a small
network, dropped after the training, projects its hidden map to that network's, and the loss is one less the cosine of
the two, place by place (Eq. 8 there). The image network is ResNet-50, its last two stages (REPA: DINOv2); the hidden
map is what leaves the UNet's lowest level on its way up, where text has been read and nothing fine is known yet.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import trange

from snapfusion.data.pairs import Pair, read_images
from snapfusion.denoising import Batch, denoising_loss
from snapfusion.latents import train_rows
from snapfusion.metrics.features import resnet50_input
from snapfusion.metrics.resnet import ResNet50, load_resnet
from snapfusion.model.unet import ElasticUNet
from snapfusion.weights import load_whole, save_whole

STAGES = (4, 5)
COMPONENTS = 96
"""Principal components that are kept of each stage: three quarters of the variance of sticker pictures."""
HIDDEN = 512
BATCH = 32


class Aligned(nn.Module):
    """A UNet with its projection: a batch and features of its pictures in, the loss out.

    Args:
        unet: what is trained; at least two levels.
        channels: of the features.
        weight: of the alignment beside the denoising loss.
    """

    def __init__(self, unet: ElasticUNet, channels: int, weight: float):
        super().__init__()
        self.unet, self.weight = unet, weight
        lowest = cast(nn.ModuleDict, unet.up_blocks["0"])
        width = unet.architecture.widths[-1]
        self.projector = nn.Sequential(nn.Conv2d(width, HIDDEN, 1), nn.SiLU(), nn.Conv2d(HIDDEN, channels, 1))
        self._hidden: Tensor | None = None
        cast(nn.ModuleList, lowest.upsamplers)[0].register_forward_hook(self._keep)

    def forward(self, batch: Batch, features: Tensor) -> Tensor:
        """The loss. `features` `[B, C, h, w]`, as `load_features` gives them."""
        loss = denoising_loss(self.unet, batch)
        assert self._hidden is not None
        projected, self._hidden = self.projector(self._hidden).float(), None
        return loss + self.weight * misalignment(projected, features)

    def enable_gradient_checkpointing(self) -> None:
        """As diffusers' models have it."""
        self.unet.enable_gradient_checkpointing()

    def _keep(self, _: nn.Module, __: object, output: Tensor) -> None:
        self._hidden = output


def misalignment(projected: Tensor, features: Tensor) -> Tensor:
    """One less the mean cosine over places of `[B, C, h, w]`; each stage, a part of the channels, counts alike."""
    assert projected.shape == features.shape, (projected.shape, features.shape)
    pairs = zip(projected.chunk(len(STAGES), dim=1), features.chunk(len(STAGES), dim=1), strict=True)
    return torch.stack([1 - F.cosine_similarity(a, b, dim=1).mean() for a, b in pairs]).mean()


def side_of(unet: ElasticUNet, latent: int) -> int:
    """Height and width of the hidden map that is aligned, for latents of height and width `latent`."""
    return latent // 2 ** (len(unet.architecture.widths) - 2)


def load_features(path: Path, data: Path, pairs: list[Pair], side: int, seed: int, device: torch.device) -> Tensor:
    """Features `[N, 2 * COMPONENTS, side, side]` float16 of the rows that `train_rows` makes of pairs of a set.

    They are in `path`, computed first if it is absent or of something else. A mirrored picture's are taken for the
    picture's own, mirrored.
    """
    wanted = hashlib.sha256(
        json.dumps([asdict(pair) for pair in pairs] + [side, seed, COMPONENTS]).encode()
    ).hexdigest()
    if path.exists():
        metadata, tensors = load_whole(path)
        if metadata.get("fingerprint") == wanted:
            return tensors["features"]
    _, _, images = train_rows(pairs, read_images(data, pairs), seed)
    maps = stage_maps(images, load_resnet().to(device), side)
    features = torch.cat([principal(stage, COMPONENTS) for stage in maps], dim=1).half().contiguous()
    save_whole({"features": features}, path, {"fingerprint": wanted})
    return features


def draw_features(features: Tensor, batch: Batch) -> Tensor:
    """The features of a batch's pictures, as they lie in it: `[B, C, h, w]` float32."""
    found = features[batch.rows].float()
    return torch.where(batch.mirrored[:, None, None, None], found.flip(3), found)


@torch.inference_mode()
def stage_maps(images: NDArray[np.uint8], network: ResNet50, side: int) -> list[Tensor]:
    """What the last stages put out for pictures `[N, H, W, 3]`, pooled: `[N, C, side, side]` float16 each."""
    device, found = network.conv1.weight.device, [[] for _ in STAGES]
    for start in trange(0, len(images), BATCH, desc="features", disable=None):
        image = torch.from_numpy(images[start : start + BATCH].copy()).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            outputs = network.stages(resnet50_input(image))
        for maps, stage in zip(found, STAGES, strict=True):
            maps.append(F.adaptive_avg_pool2d(outputs[stage].float(), side).half().cpu())
    return [torch.cat(maps) for maps in found]


def principal(maps: Tensor, count: int) -> Tensor:
    """Maps `[N, C, h, w]` on their first principal components, `[N, min(count, C), h, w]` float32, variance 1 over all.

    Each is divided by the root of its deviation: as they come the first few would be all that a cosine sees, at equal
    variance the last would be noise.
    """
    rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    mean = rows.float().mean(dim=0)
    covariance = sum(part.float().sub(mean).T @ part.float().sub(mean) for part in rows.split(8192))
    axes = torch.linalg.eigh(cast(Tensor, covariance))[1].flip(1)[:, :count]
    found = torch.cat([part.float().sub(mean) @ axes for part in rows.split(8192)])
    found = found / found.std(dim=0).clamp_min(1e-6).sqrt()
    found = found / found.std()
    return found.reshape(len(maps), *maps.shape[2:], -1).permute(0, 3, 1, 2)
