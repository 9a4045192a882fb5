"""A UNet's pieces are the network, and their counts add up to it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from snapfusion.stages.profile.figure import bars
from snapfusion.stages.profile.networks import Networks, unet_of, unet_sketch
from snapfusion.stages.profile.pieces import Piece, pieces_of
from snapfusion.stages.profile.sketch import Sketch, blank
from snapfusion.table import Entry, Table
from tiny_models import tiny_unet

LENGTH, WIDTHS = 16, (8, 8, 16, 16)
SD15 = Architecture.sd15(WIDTHS)


def weightless(architecture: Architecture = SD15) -> ElasticUNet:
    return unet_of(tiny_unet(), architecture)


def test_the_pieces_put_together_are_the_network() -> None:
    """Bit for bit, from a UNet's forward pass written down again in pieces; on an uneven latent too."""
    torch.manual_seed(0)
    for side in (16, 20):
        unet = tiny_unet().eval()
        unet.register_to_config(sample_size=side)
        piece = {(one.name, one.level): one.sketch.module for one in pieces_of(unet, LENGTH)}
        sample, step, embedding = torch.randn(2, 4, side, side), torch.tensor([7.0]), torch.randn(2, LENGTH, 16)
        with torch.inference_mode():
            time = piece["time_embedding", 0](step.expand(2))
            hidden = piece["conv_in", 0](sample)
            skips = [hidden]
            for slot in unet.architecture.slots():
                resnet = piece[slot.resnet, slot.level]
                hidden = resnet(hidden, time, skips.pop()) if slot.skip_width else resnet(hidden, time)
                if slot.position.attentions:
                    hidden = piece[slot.resnet.replace("resnets", "attentions"), slot.level](hidden, embedding)
                if slot.stage.startswith("down"):
                    skips.append(hidden)
                down, up = f"{slot.stage}.downsamplers.0", f"{slot.stage}.upsamplers.0"
                if slot.index == 1 and (down, slot.level) in piece:
                    hidden = piece[down, slot.level](hidden)
                    skips.append(hidden)
                if slot.index == 2 and (up, slot.level) in piece:
                    hidden = piece[up, slot.level](hidden)
            assert torch.equal(piece["conv_out", 0](hidden), unet(sample, step, embedding, return_dict=False)[0])


def counted(architecture: Architecture) -> Table:
    """A table with a piece's true counts, untimed."""
    found = pieces_of(weightless(architecture), LENGTH)
    macs = {shape: sketch.macs() for shape, sketch in {one.shape: one.sketch for one in found}.items()}
    entries = [Entry(one.name, one.level, 0, one.sketch.parameters, 0, macs[one.shape]) for one in found]
    return Table("nowhere", "none", "f32", 1, 1, 16, WIDTHS, (*entries, Entry("rest", 0, 0, 0, 0, 0)))


def test_the_pieces_counts_are_those_of_any_network_made_of_them() -> None:
    table, flat = counted(SD15), replace(Architecture.bk_tiny(WIDTHS), mid=SD15.mid)
    for architecture in (
        SD15,
        Architecture.bk_small(WIDTHS),
        Architecture.table3(WIDTHS).with_copies("up_blocks.0.resnets.0"),
        flat,
    ):
        whole = unet_sketch(weightless(architecture), LENGTH)
        price = table.price(architecture)
        assert (price.parameters, price.macs) == (whole.parameters, whole.macs())


def test_multiply_accumulates_are_those_of_pencil_and_paper() -> None:
    with torch.device("meta"):
        convolution = nn.Conv2d(3, 5, kernel_size=3, padding=1)
    assert Sketch(convolution, {"input": blank(3, 4, 6)}).macs() == 4 * 6 * 5 * 3 * 9

    attention = next(one for one in pieces_of(weightless(), LENGTH) if one.name == "mid_block.attentions.0")
    tokens, width, feed_forward = 2 * 2, 16, 4 * 16
    convolutions = 2 * tokens * width * width
    own = 4 * tokens * width * width + 2 * tokens * tokens * width
    cross = 2 * tokens * width * width + 2 * LENGTH * 16 * width + 2 * tokens * LENGTH * width
    gated = tokens * width * 2 * feed_forward + tokens * feed_forward * width
    assert attention.sketch.macs() == convolutions + own + cross + gated


def test_stable_diffusions_sizes_are_the_published_ones() -> None:
    sketches = Networks.sd15().sketches()
    assert {name: sketch.parameters for name, sketch in sketches.items()} == {
        "text_encoder": 123_060_480,
        "unet": 859_520_964,
        "vae_decoder": 49_490_199,
    }
    assert sketches["unet"].macs() / 1e9 == pytest.approx(401.6, abs=0.1)
    assert sketches["vae_decoder"].macs() / 1e9 == pytest.approx(1257.3, abs=0.1)


def test_blocks_of_one_shape_are_timed_once() -> None:
    """Stable Diffusion: 4 attentions (320, 640, 1280, and the middle's), 6 ResNets down, 8 up, 9 between."""
    with torch.device("meta"):
        found = pieces_of(ElasticUNet(Architecture.sd15()), length=77)
    assert len(found) == 22 + 16 + 9 + 3  # the middle's three blocks also stand where level 3 is gone
    assert len({piece.shape for piece in found}) == 4 + 6 + 8 + 9
    assert all(piece.sketch.parameters == other.sketch.parameters for piece in found for other in same(piece, found))


def test_the_stages_parameters_are_those_of_the_papers_figure_2() -> None:
    """Recounted from Stable Diffusion's weights: the figure itself can be read to a few per cent only."""
    with torch.device("meta"):
        found = pieces_of(ElasticUNet(Architecture.sd15()), length=77)
    entries = [Entry(piece.name, piece.level, 0, piece.sketch.parameters, 0, 0) for piece in found]
    table = Table("nowhere", "none", "f32", 1, 1, 64, Architecture.sd15().widths, tuple(entries))
    millions = [round(bar.parameters / 1e6, 1) for bar in bars(table, Architecture.sd15())]
    assert millions[::2] == [5.1, 18.4, 69.5, 34.8, 104.3, 27.6, 7.6]
    assert millions[1::2] == [4.5, 14.8, 55.7, 272.0, 139.3, 40.2, 11.2]


def same(piece: Piece, found: list[Piece]) -> list[Piece]:
    return [other for other in found if other.shape == piece.shape]
