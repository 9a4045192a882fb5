"""Representation alignment: what is asked of a UNet's hidden map, worked out by other means."""

from dataclasses import replace

import numpy as np
import torch

import tiny_models
from snapfusion.denoising import Batch, denoising_loss
from snapfusion.metrics.resnet import ResNet50
from snapfusion.stages.train.repa import Aligned, draw_features, misalignment, principal, side_of, stage_maps


def batch_of(rows: int) -> Batch:
    torch.manual_seed(0)
    unet = tiny_models.tiny_unet()
    side, channels = unet.config["sample_size"], unet.config["in_channels"]
    latent = torch.randn(rows, channels, side, side)
    embedding = torch.randn(rows, 5, unet.config["cross_attention_dim"])
    return Batch(latent, torch.arange(rows), embedding, latent, torch.ones(rows), torch.arange(rows), torch.zeros(rows))


def test_misalignment_by_hand() -> None:
    projected, features = torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2)
    projected[0, :, 0, 0], features[0, :, 0, 0] = torch.tensor([3.0, 4, 0, 1]), torch.tensor([4.0, 3, 0, 2])
    projected[0, :, 0, 1], features[0, :, 0, 1] = torch.tensor([1.0, 0, 1, 0]), torch.tensor([-1.0, 0, 0, 1])
    # first stage: cosines 24/25 and -1; second: 1 and 0
    expected = 1 - np.mean([24 / 25, -1, 1, 0])
    np.testing.assert_allclose(misalignment(projected, features).item(), expected, rtol=1e-6)


def test_the_loss_is_the_denoising_loss_and_the_weighted_misalignment() -> None:
    unet, batch = tiny_models.tiny_unet(), batch_of(3)
    model = Aligned(unet, channels=8, weight=0.25)
    side = side_of(unet, batch.latent.shape[-1])
    features = torch.randn(3, 8, side, side)
    kept = []
    lowest = unet.get_submodule("up_blocks.0.upsamplers.0")
    lowest.register_forward_hook(lambda _, __, output: kept.append(output))
    loss = model(batch, features)
    expected = denoising_loss(unet, batch) + 0.25 * misalignment(model.projector(kept[0]), features)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(weight.grad is not None for weight in model.projector.parameters())
    assert unet.conv_in.weight.grad is not None


def test_features_lie_as_their_pictures() -> None:
    features = torch.arange(8.0).reshape(2, 1, 2, 2)
    batch = replace(batch_of(3), rows=torch.tensor([1, 0, 1]), mirrored=torch.tensor([False, False, True]))
    expected = [[[4, 5], [6, 7]], [[0, 1], [2, 3]], [[5, 4], [7, 6]]]
    assert draw_features(features, batch)[:, 0].tolist() == expected


def test_principal_components_of_a_known_cloud() -> None:
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.standard_normal((5, 5)))[0]
    spread = np.array([9.0, 4, 1, 1e-3, 1e-3])
    rows = generator.standard_normal((4000, 5)) * spread @ axes.T + 7
    found = principal(torch.from_numpy(rows).float().reshape(1000, 2, 2, 5).permute(0, 3, 1, 2), 3)
    assert found.shape == (1000, 3, 2, 2)
    flat = found.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    wanted = (rows - 7) @ axes[:, :3] / spread[:3] ** 0.5
    correlation = np.corrcoef(flat.T, wanted.T)[:3, 3:]
    np.testing.assert_allclose(np.abs(correlation), np.eye(3), atol=0.03)
    np.testing.assert_allclose(flat.std(axis=0) / flat.std(axis=0)[0], (spread[:3] / 9) ** 0.5, rtol=0.05)


def test_the_last_stage_is_what_the_image_network_pools() -> None:
    torch.manual_seed(0)
    network, image = ResNet50().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outputs = network.stages(image)
        torch.testing.assert_close(network(image), outputs[5].mean(dim=(2, 3)))
    assert [outputs[stage].shape[1] for stage in (2, 3, 4, 5)] == [256, 512, 1024, 2048]
    maps = stage_maps(np.zeros((2, 32, 32, 3), np.uint8), network, 4)
    assert [tuple(stage.shape) for stage in maps] == [(2, 1024, 4, 4), (2, 2048, 4, 4)]
