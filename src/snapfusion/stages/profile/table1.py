"""The paper's Table 1 for a device: what each network takes, and how near it comes to what the engine can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from snapfusion.stages.profile.engines import Engine
from snapfusion.stages.profile.sketch import Sketch
from snapfusion.stages.profile.timing import rounds
from snapfusion.table import Entry

RUNS = {"text_encoder": 2, "unet": 50, "vae_decoder": 1}
"""For one picture, in the paper. Whether a run of its UNet is of one row or, for guidance, of two, it does not say."""
PEAK_SIZES, PEAK_LAYERS = (1024, 2048), 4


@dataclass(frozen=True)
class Row:
    """One network."""

    entry: Entry
    batch: int
    runs: int
    """For a picture."""
    share: float
    """Of the engine's peak."""


def peak_of(engine: Engine, seconds: float = 0.5) -> float:
    """Operations a second (two a multiply-accumulate) that an engine reaches in its fastest matrix multiplications."""
    fastest = 0.0
    for size in PEAK_SIZES:
        layers = nn.Sequential(*(nn.Linear(size, size, bias=False, device="meta") for _ in range(PEAK_LAYERS)))
        square = Sketch(layers, {"input": torch.empty(size, size, device="meta")})
        taken = rounds([engine.open(square, [size]).runs[size]], seconds)
        fastest = max(fastest, 2 * PEAK_LAYERS * size**3 / (taken.min() / 1000))
    return fastest


def table1(wholes: Mapping[int, Sequence[Entry]], peak: float) -> list[Row]:
    """A row for each network at the first batch, and one for the UNet at each other: guidance runs it on two rows.

    Args:
        wholes: Entries of the whole networks, by the batch.
        peak: Of the engine, operations a second.
    """
    first = next(iter(wholes))
    return [
        Row(entry, batch, RUNS[entry.name], 2 * entry.macs * batch / (entry.milliseconds / 1000) / peak)
        for batch, entries in wholes.items()
        for entry in entries
        if batch == first or entry.name == "unet"
    ]


def format_table1(rows: Sequence[Row], peak: float) -> str:
    """As lines of text."""
    head = (
        f"{'':14}{'batch':>6}{'params M':>10}{'GMAC':>9}{'ms':>10}{'spread':>8}{'runs':>6}{'total ms':>11}{'peak':>9}"
    )
    lines = [
        f"{row.entry.name:14}{row.batch:>6}{row.entry.parameters / 1e6:>10.1f}{row.entry.macs * row.batch / 1e9:>9.2f}"
        f"{row.entry.milliseconds:>10.2f}{row.entry.spread:>8.2f}{row.runs:>6}"
        f"{row.entry.milliseconds * row.runs:>11.1f}{row.share:>9.0%}"
        for row in rows
    ]
    return "\n".join([head, *lines, f"peak: {peak / 1e9:.0f} GFLOP/s, in matrix multiplications"])
