import math

import pytest
import torch

from snapfusion.metrics.fidelity import psnr, psnr_drawn


def test_psnr_of_a_known_error() -> None:
    reference = torch.rand(2, 3, 4, 5)
    error = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    # MSE 1e-2 and 1e-4, so 20 and 40 dB.
    torch.testing.assert_close(psnr(reference + error, reference), torch.tensor([20.0, 40.0]), atol=1e-3, rtol=0)


def test_psnr_of_equal_images_is_infinite() -> None:
    image = torch.rand(1, 3, 4, 4)
    assert psnr(image, image).tolist() == [math.inf]


def test_psnr_drawn_looks_only_where_the_reference_is_not_white() -> None:
    reference = torch.ones(1, 3, 2, 2)
    reference[0, :, 0, 0] = 0.5
    reference[0, :, 0, 1] = torch.tensor([1.0, 1.0, 0.2])  # yellow: one channel below white is enough
    image = reference.clone()
    image[0, :, 1] = 0.0  # errors on white, not counted
    image[0, :, 0, 0] += 0.1
    # Of two drawn pixels one is off by 0.1 in all channels: MSE 0.01 / 2.
    assert psnr_drawn(image, reference).item() == pytest.approx(-10 * math.log10(0.005), abs=1e-4)
    assert psnr(image, reference).item() < psnr_drawn(image, reference).item()


def test_psnr_drawn_counts_a_pixel_that_an_8_bit_picture_tells_from_white() -> None:
    reference = torch.full((1, 3, 1, 2), 1.0)
    reference[0, 0, 0, 0] = 254 / 255
    image = reference - torch.tensor([0.1, 0.2])
    assert psnr_drawn(image, reference).item() == pytest.approx(20, abs=1e-3)
    assert math.isnan(psnr_drawn(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)).item())
