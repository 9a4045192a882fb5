import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from random_architectures import architectures

from snapfusion.model.architecture import SD_WIDTHS, Architecture
from snapfusion.model.block import Block, Position

STICKER_WIDTHS = (64, 128, 192, 256)
NAMED = [
    Architecture.sd15,
    Architecture.without_top_attention,
    Architecture.table3,
    Architecture.bk_base,
    Architecture.bk_small,
    Architecture.bk_tiny,
]


def per_stage(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Cross-attentions and ResNets as the paper's Table 3 counts them: all that runs at H/64 is "Mid"."""

    def row(block: Block) -> str:
        side, _, number = block.stage.partition(".")
        if block.level == 3:
            return "Mid"
        return f"Down-{int(number) + 1}" if side == "down_blocks" else f"Up-{number}"

    counts = Counter((row(block), block.kind) for block in architecture.blocks())
    return {name: (counts[name, "attention"], counts[name, "resnet"]) for name, _ in counts}


def test_stable_diffusion_has_the_blocks_of_the_papers_table() -> None:
    sd15 = {"Down-1": (2, 2), "Down-2": (2, 2), "Down-3": (2, 2), "Mid": (1, 7)}
    assert per_stage(Architecture.sd15()) == {**sd15, "Up-1": (3, 3), "Up-2": (3, 3), "Up-3": (3, 3)}


def test_four_resnets_of_stable_diffusion_change_the_width() -> None:
    blocks = Architecture.sd15().blocks()
    assert Counter(block.kind for block in blocks) == {"resnet": 22, "attention": 16}
    assert Counter(block.kind for block in blocks if block.removable) == {"resnet": 18, "attention": 16}
    assert [block.name for block in blocks if not block.removable] == [
        "down_blocks.1.resnets.0",
        "down_blocks.2.resnets.0",
        "up_blocks.2.resnets.0",
        "up_blocks.3.resnets.0",
    ]


def test_blocks_run_in_order_and_know_their_widths() -> None:
    blocks = Architecture.sd15(STICKER_WIDTHS).with_copies("down_blocks.0.attentions.0").blocks()
    assert [block.name for block in blocks[:5]] == [
        "down_blocks.0.resnets.0",
        "down_blocks.0.attentions.0",
        "down_blocks.0.attentions.0.copies.0",
        "down_blocks.0.resnets.1",
        "down_blocks.0.attentions.1",
    ]
    assert blocks[2].original == "down_blocks.0.attentions.0"
    # What UNet2DConditionModel builds there: 192 + 128 channels in, 128 of them a skip from the level above; 192 out.
    found = next(block for block in blocks if block.name == "up_blocks.1.resnets.2")
    assert (found.level, found.width_in, found.skip_width, found.width) == (2, 192, 128, 192)


def test_table3_is_the_papers() -> None:
    ours = {"Down-2": (2, 2), "Down-3": (2, 1), "Mid": (1, 4), "Up-1": (6, 2), "Up-2": (3, 3)}
    for widths in (SD_WIDTHS, STICKER_WIDTHS):
        assert per_stage(Architecture.table3(widths)) == {"Down-1": (0, 2), **ours, "Up-3": (0, 3)}


def test_bk_tiny_ends_a_level_early_at_any_widths() -> None:
    for widths in (SD_WIDTHS, STICKER_WIDTHS):
        tiny = Architecture.bk_tiny(widths)
        down, up = {f"Down-{i}": (1, 1) for i in (1, 2, 3)}, {f"Up-{i}": (2, 2) for i in (1, 2, 3)}
        assert per_stage(tiny) == down | up
        # Shapes of a network of three levels with one ResNet each: the deepest up level takes its own width twice.
        first = next(block for block in tiny.blocks() if block.stage == "up_blocks.1")
        assert (first.width_in, first.skip_width) == (widths[2], widths[2])


def test_removing_and_copying_are_undone_by_each_other() -> None:
    sd15, name = Architecture.sd15(), "up_blocks.1.attentions.2"
    copied = sd15.with_copies(name)
    assert copied.without(name) == copied.without(f"{name}.copies.0") == sd15
    assert name not in {block.name for block in sd15.without(name).blocks()}


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("widths", [SD_WIDTHS, STICKER_WIDTHS])
def test_named_architectures_survive_json(named: Any, widths: tuple[int, ...]) -> None:
    architecture = named(widths)
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(architectures())
def test_every_level_pushes_as_many_skips_as_it_pops(architecture: Architecture) -> None:
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture
    pushed, popped = Counter(range(len(architecture.down))), Counter()  # one of each level's comes from its sampler
    for slot in architecture.slots():
        if slot.position.skip and slot.stage != "mid_block":
            (pushed if slot.stage.startswith("down") else popped)[slot.level] += 1
    assert pushed == popped


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(architectures())
def test_a_skip_cannot_be_given_up_alone(architecture: Architecture) -> None:
    for level, positions in enumerate(architecture.down):
        flipped = replace(positions[0], skip=not positions[0].skip)
        down = (*architecture.down[:level], (flipped, *positions[1:]), *architecture.down[level + 1 :])
        with pytest.raises(ValueError, match="skip"):
            replace(architecture, down=down)


SD15 = Architecture.sd15()
GONE = Position(0, 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SD15.without("down_blocks.1.resnets.0"), "changes 320 channels to 640"),
        (lambda: SD15.without("up_blocks.3.resnets.0"), "changes 640 channels to 320"),
        (lambda: SD15.with_copies("down_blocks.2.resnets.0"), "cannot be copied"),
        (lambda: SD15.without("down_blocks.3.attentions.0"), "expected the name of a block that is there"),
        (lambda: SD15.without("up_blocks.1.attentions.0.copies.0"), "expected the name of a block that is there"),
        (lambda: SD15.without_pair("down_blocks.0.resnets.1", "down_blocks.0.resnets.0"), "a down and an up ResNet"),
        (lambda: SD15.without_pair("down_blocks.2.resnets.1", "up_blocks.0.resnets.1"), "got skip"),
        (lambda: SD15.without_pair("down_blocks.1.resnets.0", "up_blocks.2.resnets.1"), "cannot be removed"),
        (lambda: replace(SD15, mid=(Position(1, 1, skip=False), GONE)), "no skip to give up"),
        (lambda: replace(SD15, mid=(GONE,)), "expected two positions"),
        (lambda: replace(SD15, down=SD15.down[:3]), "3 down levels and 4 up levels"),
        (lambda: replace(SD15, down=(), up=()), "0 down levels"),
        (lambda: replace(SD15, widths=[320, 640, 1280, 1280]), "expected a tuple"),
        (lambda: replace(SD15, widths=(320, 640, 1280, 0)), "expected a tuple of channels"),
        (lambda: replace(SD15, down=((Position(1, 1),), *SD15.down[1:])), "1 down and 3 up positions"),
        # Two levels less: what is left of the way up is too narrow for the middle, then for its own first ResNet.
        (lambda: replace(SD15, down=SD15.down[:2], up=SD15.up[2:]), "mid_block.resnets.0: got 640 channels"),
        (lambda: replace(SD15, down=SD15.down[:2], mid=(GONE, GONE), up=SD15.up[2:]), "up_blocks.2.resnets.0: got 640"),
        (lambda: Position(-1, 0), "got resnets = -1"),
        (lambda: Position(1, True), "got attentions = True"),
        (lambda: Position(1, 1, skip=1), "got skip = 1"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up": None}, "expected a list"),
        ({"mid": [{"resnets": 1}]}, "expected an object with resnets, attentions"),
        ({"mid": [[1, 1], [1, 0]]}, "expected an object with resnets, attentions"),
        ({"mid": [{"resnets": 1, "attentions": 0, "samplers": 1}] * 2}, "expected an object with resnets, attentions"),
        ({"mid": [{"resnets": 1.0, "attentions": 0}] * 2}, "got resnets = 1.0"),
        ({"widths": ["320", 640, 1280, 1280]}, "expected a tuple of channels"),
        ({"levels": 4}, "expected an object with widths, down, mid and up"),
    ],
)
def test_json_that_is_no_architecture_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture.from_dict({**SD15.to_dict(), **change})
