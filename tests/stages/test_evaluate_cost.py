"""Costs against numbers worked out by hand, and a bundle's against its checkpoint's."""

from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from snapfusion.checkpoint import load_checkpoint
from snapfusion.generate import open_bundle
from snapfusion.runtimes.openvino import FILES
from snapfusion.stages.evaluate import cost
from snapfusion.stages.evaluate.cost import PARTS, Cost, costs_of, macs_of_picture


def test_torchs_count_is_the_one_by_hand() -> None:
    convolution, linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(10, 6)
    assert cost._run(lambda: convolution(torch.zeros(1, 3, 5, 7))) == 8 * 5 * 7 * 3 * 3 * 3
    assert cost._run(lambda: linear(torch.zeros(4, 10))) == 4 * 10 * 6
    query, key = torch.zeros(1, 2, 11, 16), torch.zeros(1, 2, 13, 16)
    attention = cost._run(lambda: nn.functional.scaled_dot_product_attention(query, key, key))
    assert attention == 2 * (2 * 11 * 13 * 16)  # of the weights, and of what they weigh


def test_openvinos_count_is_the_one_by_hand(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = op.parameter([-1, 4, 6, 6], np.float32, name="image")
    kernel = op.constant(random.integers(-9, 9, (8, 4, 3, 3)).astype(np.int8))
    scale = op.constant(random.random((8, 1, 1, 1)).astype(np.float32))
    weights = op.multiply(op.convert(kernel, np.float32), scale)
    convolved = op.convolution(image, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    flat = op.reshape(convolved, op.constant(np.array([0, 8, 36])), special_zero=True)
    product = op.matmul(op.constant(random.random((5, 8)).astype(np.float32)), flat, False, False)
    attended = op.scaled_dot_product_attention(product, product, product)
    words = op.constant(random.integers(-7, 7, (6, 2, 8)).astype(np.int8), ov.Type.i4)  # two groups of a row of 16
    table = op.multiply(op.convert(words, np.float32), op.constant(random.random((6, 2, 1)).astype(np.float32)))
    row = op.gather(
        op.reshape(table, op.constant(np.array([6, 16])), special_zero=False), op.constant(3), op.constant(0)
    )
    model = ov.Model([attended, row], [image])
    ov.save_model(model, tmp_path / FILES[0], compress_to_fp16=True)
    found = cost._cost_of_graph(tmp_path)
    assert found.parameters == 8 * 4 * 3 * 3 + 5 * 8 + 6 * 16  # the scales apart
    assert found.macs == 8 * 36 * 4 * 3 * 3 + 5 * 36 * 8 + 2 * 5 * 5 * 36
    assert found.bytes == sum((tmp_path / name).stat().st_size for name in FILES)


@pytest.fixture(scope="module")
def checkpoint_costs(few_blocks: Path) -> dict[str, Cost]:
    return dict(costs_of(load_checkpoint(few_blocks), few_blocks))


def test_a_checkpoint_counts_what_its_files_hold(few_blocks: Path, checkpoint_costs: dict[str, Cost]) -> None:
    weights = {
        "text_encoder": load_file(few_blocks / "text_encoder" / "model.safetensors"),
        "unet": load_file(few_blocks / "unet" / "diffusion_pytorch_model.safetensors"),
        "vae_decoder": {
            name: weight
            for name, weight in load_file(few_blocks / "vae" / "diffusion_pytorch_model.safetensors").items()
            if not name.startswith(("encoder.", "quant_conv."))
        },
    }
    for part in PARTS:
        tensors = weights[part].values()
        assert checkpoint_costs[part].parameters == sum(tensor.numel() for tensor in tensors)
        assert checkpoint_costs[part].bytes == sum(tensor.numel() * 4 for tensor in tensors)


@pytest.mark.slow
def test_a_bundle_costs_what_its_checkpoint_does_but_for_bytes(
    tiny_bundle: Path, checkpoint_costs: dict[str, Cost]
) -> None:
    found = costs_of(open_bundle(tiny_bundle), tiny_bundle)
    for part in PARTS:
        assert found[part].macs == pytest.approx(checkpoint_costs[part].macs, rel=0.005)
    for part in ("unet", "vae_decoder"):  # not BERT's: its pooling, which nothing reads, is no part of the graph
        assert found[part].parameters == pytest.approx(checkpoint_costs[part].parameters, rel=0.02)


def test_a_picture_is_text_steps_and_a_decoder() -> None:
    costs = {part: Cost(0, 0, macs) for part, macs in zip(PARTS, (3, 100, 20), strict=True)}
    assert macs_of_picture(costs, steps=8, guided=8) == 2 * 3 + 2 * 8 * 100 + 20
    assert macs_of_picture(costs, steps=8, guided=3) == 2 * 3 + 3 * 2 * 100 + 5 * 100 + 20
    assert macs_of_picture(costs, steps=8, guided=0) == 3 + 8 * 100 + 20
