"""Attention for the Neural Engine is attention."""

import copy

import torch

from snapfusion.model.neural_engine import SplitEinsum
from tiny_models import LENGTH, WIDTH, tiny_unet


@torch.inference_mode()
def test_it_computes_what_diffusers_does() -> None:
    plain = tiny_unet().eval()
    split = copy.deepcopy(plain)
    split.set_attn_processor(SplitEinsum())
    inputs = torch.randn(2, 4, 16, 16), 7, torch.randn(2, LENGTH, WIDTH)
    expected, output = plain(*inputs).sample, split(*inputs).sample
    assert not torch.equal(output, expected)  # it does take part
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
