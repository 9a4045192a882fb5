import math

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from snapfusion.metrics.lpips import Lpips


@pytest.fixture
def lpips() -> Lpips:
    generator = torch.Generator().manual_seed(0)
    network = Lpips(levels=2)
    for head in network.heads:
        head.copy_(torch.rand(head.shape, generator=generator))
    return network


def level_by_hand(level: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Convolutions with ReLU in float64, by scipy: `[C, H, W]` -> `[C', H, W]`."""
    for layer in level.children():
        if isinstance(layer, torch.nn.Conv2d):
            weight, bias = (parameter.double().numpy() for parameter in (layer.weight, layer.bias))
            image = np.stack(
                [
                    sum(
                        correlate2d(channel, kernel, mode="same")
                        for channel, kernel in zip(image, kernels, strict=True)
                    )
                    + offset
                    for kernels, offset in zip(weight, bias, strict=True)
                ]
            ).clip(0)
    return image


def test_distance_is_the_weighted_mean_square_of_unit_features(lpips: Lpips) -> None:
    """Eq. 1 of the LPIPS paper, worked out in float64 with scipy's correlation."""
    images = torch.rand(2, 1, 3, 8, 8)
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    features = [(2 * image[0].double().numpy() - 1 - shift[:, None, None]) / scale[:, None, None] for image in images]
    expected = 0.0
    for index, (level, head) in enumerate(zip(lpips.levels, lpips.heads, strict=True)):
        if index:
            features = [f.reshape(len(f), f.shape[1] // 2, 2, f.shape[2] // 2, 2).max(axis=(2, 4)) for f in features]
        features = [level_by_hand(level, f) for f in features]
        a, b = (f / np.linalg.norm(f, axis=0) for f in features)
        expected += (head.double().numpy()[:, None, None] * (a - b) ** 2).sum(axis=0).mean()
    assert lpips(images[0], images[1]).item() == pytest.approx(expected, rel=1e-4)


def test_equal_images_are_at_distance_0_and_order_does_not_matter(lpips: Lpips) -> None:
    a, b = torch.rand(2, 3, 3, 16, 16)
    assert lpips(a, a).tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    assert (lpips(a, b) > 0).all()


def test_fewer_levels_are_the_first_terms_of_the_sum(lpips: Lpips) -> None:
    first = Lpips(levels=1)
    first.load_state_dict({name: value for name, value in lpips.state_dict().items() if ".0" in name[:9]})
    a, b = torch.rand(2, 1, 3, 16, 16)
    lpips.heads[1].zero_()
    torch.testing.assert_close(first(a, b), lpips(a, b))


def test_gradient_is_finite_on_a_white_patch_and_reaches_only_the_image(lpips: Lpips) -> None:
    image = torch.ones(1, 3, 16, 16, requires_grad=True)
    lpips(image, torch.rand(1, 3, 16, 16)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_all_five_levels_have_vgg16s_layers() -> None:
    with torch.device("meta"):
        network = Lpips()
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())
    # VGG16 without its classifier has 14,714,688 parameters in 13 convolutions; the heads add one for each channel.
    assert convolutions == 13
    assert sum(p.numel() for p in network.parameters()) == 14_714_688 + 64 + 128 + 256 + 512 + 512


@pytest.mark.parametrize("levels", [0, 6])
def test_levels_outside_1_to_5_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 5"):
        Lpips(levels)


def test_distance_of_one_image_does_not_depend_on_its_batch(lpips: Lpips) -> None:
    a, b = torch.rand(2, 4, 3, 16, 16)
    together = lpips(a, b)
    alone = torch.cat([lpips(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert math.isfinite(together.sum().item())
