"""The paper's Fig. 2 for a device: time and parameters of every stage, cross-attention against ResNet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snapfusion.model.architecture import Architecture
from snapfusion.model.block import Block, Kind
from snapfusion.table import Table

KINDS: tuple[tuple[Kind, str, str], ...] = (
    ("attention", "cross-attention", "#c8553d"),
    ("resnet", "ResNet", "#588b8b"),
)


@dataclass(frozen=True)
class Bar:
    """What the blocks of one kind in one stage come to, copies included."""

    stage: str
    """As the paper groups them: levels on the way down, the deepest one with the middle, levels on the way up."""
    kind: Kind
    milliseconds: float
    parameters: int
    macs: int


def bars(table: Table, architecture: Architecture) -> list[Bar]:
    """Stage by stage in the order in which they run, cross-attention before ResNet."""
    deepest = len(architecture.down) - 1
    stages: dict[str, list[Block]] = {}
    for block in architecture.blocks():
        stages.setdefault(_stage(block, deepest, table.sample_size), []).append(block)
    found = []
    for stage, blocks in stages.items():
        for kind, _, _ in KINDS:
            entries = [table.entry(block.original, block.level) for block in blocks if block.kind == kind]
            bar = Bar(
                stage,
                kind,
                milliseconds=sum(entry.milliseconds for entry in entries),
                parameters=sum(entry.parameters for entry in entries),
                macs=sum(entry.macs for entry in entries),
            )
            found.append(bar)
    return found


def draw(table: Table, architecture: Architecture, file: Path) -> None:
    """Write the picture."""
    found = bars(table, architecture)
    figure = Figure(figsize=(11, 4), layout="constrained")
    time, size = figure.subplots(1, 2)
    _panel(time, found, [bar.milliseconds for bar in found], f"ms, batch of {table.batch}")
    _panel(size, found, [bar.parameters / 1e6 for bar in found], "parameters, M")
    time.legend(frameon=False)
    threads = "thread" if table.threads == 1 else "threads"
    figure.suptitle(f"{table.device}, {table.engine}, {table.precision}, {table.threads} {threads}", fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def format_bars(found: Iterable[Bar]) -> str:
    """The picture as lines of text, a stage each."""
    lines: dict[str, str] = {}
    for bar in found:
        stage = bar.stage.replace("\n", " ")
        start = lines.get(stage, f"{stage:12}")
        lines[stage] = f"{start}{bar.milliseconds:>12.2f} ms{bar.parameters / 1e6:>8.1f}M{bar.macs / 1e9:>8.2f} GMAC"
    return "\n".join([f"{'':12}{KINDS[0][1]:>37}{KINDS[1][1]:>37}", *lines.values()])


def _panel(axes: Axes, found: Iterable[Bar], heights: list[float], label: str) -> None:
    stages = list(dict.fromkeys(bar.stage for bar in found))
    width = 0.4
    for number, (kind, name, colour) in enumerate(KINDS):
        shown = [height for bar, height in zip(found, heights, strict=True) if bar.kind == kind]
        places = [place + (number - 0.5) * width for place in range(len(stages))]
        drawn = axes.bar(places, shown, width, label=name, color=colour)
        axes.bar_label(drawn, fmt="%.3g", fontsize=7, padding=1)
    axes.set_xticks(range(len(stages)), stages, fontsize=8)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _stage(block: Block, deepest: int, sample_size: int) -> str:
    side = -(-sample_size // 2**block.level)
    way = "Mid" if block.level == deepest else block.stage.split("_")[0].capitalize()
    return f"{way}\n{side}×{side}"
