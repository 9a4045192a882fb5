"""The lookup table (section 4): what each piece of a UNet costs on one device, and so what any architecture costs.

A UNet's price is the plain sum of its pieces: its blocks, what stands between them (`pieces`), and one entry "rest" for
what the whole network takes beyond them. A copy costs what its original does. Entries of other names, such as
"text_encoder", "unet" and "vae_decoder" for the networks as wholes, enter no price. The file is JSON, so a table may
come from elsewhere, a phone for one:

    {"version": 1, "device": "...", "engine": "...", "precision": "bf16", "threads": 2, "batch": 1, "sample_size": 64,
     "widths": [320, 640, 1280, 1280],
     "entries": [{"name": "conv_in", "level": 0, "milliseconds": 0.5, "spread": 0.1,
                  "parameters": 11840, "bytes": 23680, "macs": 47185920}, ...]}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from snapfusion.json_file import read_json, write_json
from snapfusion.model.architecture import Architecture

VERSION = 1
REST = "rest"


@dataclass(frozen=True)
class Entry:
    """What one piece of the UNet costs."""

    name: str
    """What the names of its weights begin with: "conv_in", "down_blocks.0.attentions.1", ...; or "rest"."""
    level: int
    """It runs on a latent whose sides are divided by 2**level."""
    milliseconds: float
    """Median, for a whole batch. Only that of "rest" may be negative: engines join neighbours into one pass."""
    parameters: int
    bytes: int
    """Of its weights, as the engine's file stores them."""
    macs: int
    """Multiply-accumulates for one picture, whatever the batch."""
    spread: float = 0.0
    """The range of the middle half of the milliseconds."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"got name {self.name!r} in a table, expected text")
        where = f"in the entry {self.name!r}"
        for name in ("level", "parameters", "bytes", "macs"):
            if type(value := getattr(self, name)) is not int or value < 0:
                raise ValueError(f"got {name} {value!r} {where}, expected a whole number of at least 0")
        for name in ("milliseconds", "spread"):
            value, least = getattr(self, name), -math.inf if (name, self.name) == ("milliseconds", REST) else 0
            if type(value) not in (int, float) or not math.isfinite(value) or value < least:
                raise ValueError(f"got {name} {value!r} {where}, expected a number of at least {least}")


@dataclass(frozen=True)
class Price:
    """What a whole UNet costs: one run, of the table's batch; multiply-accumulates of one picture."""

    milliseconds: float
    parameters: int
    megabytes: float
    """10**6 bytes."""
    macs: int


@dataclass(frozen=True)
class Table:
    """The prices of a UNet's pieces on one device. Raises `ValueError` where it contradicts itself."""

    device: str
    engine: str
    precision: str
    threads: int
    batch: int
    """Rows of the latent in every run that was timed: 2 where guidance runs both predictions at once."""
    sample_size: int
    """Side of the latent at level 0."""
    widths: tuple[int, ...]
    """Channels of every level."""
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        for name in ("device", "engine", "precision"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"got {name} {getattr(self, name)!r} in a table, expected text")
        for name in ("threads", "batch", "sample_size"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ValueError(f"got {name} {value!r} in a table, expected a count of at least 1")
        if len(self._by_piece) < len(self.entries):
            keys = [(entry.name, entry.level) for entry in self.entries]
            name, level = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"got two entries for {name} at level {level} in a table, expected one; remove one")

    @cached_property
    def _by_piece(self) -> dict[tuple[str, int], Entry]:
        return {(entry.name, entry.level): entry for entry in self.entries}

    def entry(self, name: str, level: int = 0) -> Entry:
        """One piece's entry. Raises `ValueError` where there is none."""
        if (name, level) not in self._by_piece:
            raise ValueError(self._lacks([(name, level)]))
        return self._by_piece[name, level]

    def price(self, architecture: Architecture) -> Price:
        """What the UNet of an architecture costs.

        Raises `ValueError` where the table was measured at other widths or lacks a piece.
        """
        if architecture.widths != self.widths:
            raise ValueError(
                f"got an architecture of widths {architecture.widths}, expected {self.widths}, which the table of "
                f"{self.device} was measured at; measure a table for this checkpoint"
            )
        wanted = list(pieces(architecture))
        if missing := [piece for piece in dict.fromkeys(wanted) if piece not in self._by_piece]:
            raise ValueError(self._lacks(missing))
        entries = [self._by_piece[piece] for piece in wanted]
        return Price(
            milliseconds=math.fsum(entry.milliseconds for entry in entries),
            parameters=sum(entry.parameters for entry in entries),
            megabytes=sum(entry.bytes for entry in entries) / 1e6,
            macs=sum(entry.macs for entry in entries),
        )

    def _lacks(self, missing: list[tuple[str, int]]) -> str:
        named = ", ".join(f"{name} at level {level}" for name, level in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return (
            f"got a table of {self.device} without {named}{more}, expected an entry for each piece of the architecture;"
            " measure it on a checkpoint that has them, or add them to the file"
        )

    def save(self, file: Path) -> None:
        """Write the table as JSON."""
        write_json(file, {"version": VERSION, **asdict(self)})


def load_table(file: Path) -> Table:
    """The table in `file`. Raises `ValueError` that names the file and what is wrong with it."""
    data = read_json(file)
    if (version := data.pop("version", None)) != VERSION:
        raise ValueError(f"{file}: got a table of version {version!r}, expected version {VERSION}; measure it again")
    try:
        _refuse_other_keys(data, Table, "the table")
        entries, widths = data["entries"], data["widths"]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("got entries that are not a list of objects, expected one object for each piece")
        if not isinstance(widths, list) or not all(type(width) is int for width in widths):
            raise ValueError(f"got widths {widths!r}, expected a list of channels, one for each level")
        for entry in entries:
            _refuse_other_keys(entry, Entry, f"the entry {entry.get('name')!r}")
        return Table(**{**data, "widths": tuple(widths), "entries": tuple(Entry(**entry) for entry in entries)})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def pieces(architecture: Architecture) -> Iterator[tuple[str, int]]:
    """Name and level of every piece of a UNet, a block again for every copy; "rest" last.

    "time_embedding" stands for both its projections, "conv_out" also for the norm before it, a ResNet of an up level
    also for the concatenation of its skip.
    """
    depth, levels = len(architecture.down), len(architecture.widths)
    yield from [("conv_in", 0), ("time_embedding", 0)]
    for block in architecture.blocks():
        yield block.original, block.level
    for level in range(depth - 1):
        yield f"down_blocks.{level}.downsamplers.0", level
    for level in range(depth - 1, 0, -1):
        yield f"up_blocks.{levels - 1 - level}.upsamplers.0", level
    yield from [("conv_out", 0), (REST, 0)]


def _refuse_other_keys(data: Mapping[str, Any], kind: type, where: str) -> None:
    """Raise `ValueError` unless `data` has the fields of a dataclass, those with defaults or without."""
    names = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if unknown := sorted(set(data) - names):
        raise ValueError(f"got {', '.join(unknown)} in {where}, expected only {', '.join(sorted(names))}")
    if missing := sorted(needed - set(data)):
        raise ValueError(f"got no {', '.join(missing)} in {where}, expected {', '.join(sorted(names))}")
