"""Guidance against Eq. 3 worked out by hand."""

import numpy as np
import pytest
import torch

from snapfusion.diffusion.guidance import guide


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_eq_3_by_hand(make):
    cond, uncond = make([1.0, 2.0]), make([0.5, -1.0])
    assert guide(cond, uncond, 7.5).tolist() == pytest.approx([4.25, 21.5])  # 7.5 - 3.25; 15 + 6.5
    assert guide(cond, uncond, 1.0).tolist() == [1.0, 2.0]
    assert guide(cond, uncond, 0.0).tolist() == [0.5, -1.0]


def test_a_guidance_for_each_picture():
    cond, uncond = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    assert guide(cond, uncond, torch.tensor([2.0, 14.0]).reshape(2, 1, 1, 1)).flatten().tolist() == [2.0, 14.0]


def test_precision_is_kept():
    latent = np.ones((1, 4), np.float32)
    assert guide(latent, latent, 7.5).dtype == np.float32
