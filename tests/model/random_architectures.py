"""Legal architectures by chance: a small whole network, then cuts, copies, skips given up, levels that end early."""

from dataclasses import replace

from hypothesis import strategies as st

from snapfusion.model.architecture import Architecture
from snapfusion.model.block import Position


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    widths = tuple(sorted(draw(st.lists(st.sampled_from((8, 16)), min_size=1, max_size=3))))
    levels = [(Position(1, draw(st.integers(0, 1))), draw(st.integers(1, 2))) for _ in widths]
    architecture = Architecture(
        widths,
        tuple((position,) * layers for position, layers in levels),
        (Position(1, draw(st.integers(0, 1))), Position(1, 0)),
        tuple((position,) * (layers + 1) for position, layers in reversed(levels)),
    )
    for level in range(len(widths)):
        if draw(st.booleans()):
            architecture = give_up_a_skip(draw, architecture, level)
    for _ in range(draw(st.integers(0, 5))):
        removable = [block.name for block in architecture.blocks() if block.removable]
        if removable:
            name = draw(st.sampled_from(removable))
            architecture = architecture.without(name) if draw(st.booleans()) else architecture.with_copies(name)
    if len(widths) > 1 and widths[-2] == widths[-1] and draw(st.booleans()):
        architecture = replace(architecture, down=architecture.down[:-1], up=architecture.up[1:])
    return architecture


def give_up_a_skip(draw: st.DrawFn, architecture: Architecture, level: int) -> Architecture:
    """Any down position of a level with any up position, where both ResNets keep the width and the skip is as wide."""
    here = [slot for slot in architecture.slots() if slot.level == level and slot.width_in == slot.width]
    down = [slot.resnet for slot in here if slot.stage.startswith("down")]
    up = [slot.resnet for slot in here if slot.stage.startswith("up") and slot.skip_width == slot.width]
    if not down or not up:
        return architecture
    return architecture.without_pair(draw(st.sampled_from(down)), draw(st.sampled_from(up)))
