"""The table of a UNet by one of three methods; `docs/profile.md` says which predicts best.

alone       A block by itself at its shape. It pays for what a block inside the network does not: the call, and the
            engine's change of layout and precision on its way in and out.
chain       What one more copy of a block behind itself adds, which is free of that. What cannot be copied, because it
            changes the width, is timed alone.
difference  The whole network less the whole network without the block: the block among its neighbours, but a small
            difference of two large times. What cannot be removed is timed alone.

Whatever the method, blocks of one shape are timed once, and the whole network is timed too: `calibrate` attributes what
the sum of the pieces misses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from snapfusion.progress import progress
from snapfusion.stages.profile.engines import Engine, Opened, device
from snapfusion.stages.profile.networks import Networks, unet_of, unet_sketch
from snapfusion.stages.profile.pieces import Piece, pieces_of
from snapfusion.stages.profile.sketch import Sketch
from snapfusion.stages.profile.timing import Timing, rounds, timing
from snapfusion.table import REST, Entry, Table, pieces

Method = Literal["alone", "chain", "difference"]
Calibration = Literal["none", "rest", "scale"]
COPIES = 2  # of a block behind itself, in a chain


@dataclass(frozen=True)
class Cost:
    """What was measured of one network or piece, and counted."""

    timings: Mapping[int, Timing]
    """By the batch."""
    parameters: int
    bytes: int
    macs: int
    threads: int

    def entry(self, name: str, level: int, batch: int) -> Entry:
        timed = self.timings[batch]
        return Entry(name, level, timed.median, self.parameters, self.bytes, self.macs, timed.spread)


@dataclass(frozen=True)
class Stopwatch:
    """Times sketches on an engine."""

    engine: Engine
    batches: tuple[int, ...] = (1, 2)
    seconds: float = 0.5
    """For each piece and batch, at the least; never fewer than `timing.LEAST` rounds."""

    def open(self, sketch: Sketch) -> Opened:
        return self.engine.open(sketch, self.batches)

    def alone(self, sketch: Sketch) -> Cost:
        """A network by itself."""
        opened = self.open(sketch)
        timings = {batch: timing(rounds([run], self.seconds)[:, 0]) for batch, run in opened.runs.items()}
        return Cost(timings, sketch.parameters, opened.bytes, sketch.macs(), opened.threads)

    def chain(self, piece: Piece) -> Cost:
        """What a removable piece adds behind itself."""
        one, row = self.open(piece.sketch), self.open(piece.row(1 + COPIES))
        timings = self._more(row, one, COPIES)
        return Cost(timings, piece.sketch.parameters, one.bytes, piece.sketch.macs(), one.threads)

    def difference(self, piece: Piece, whole: Opened, less: Sketch) -> Cost:
        """What a piece adds to `less`, the network without it."""
        opened = self.open(less)
        size = max(0, whole.bytes - opened.bytes)
        return Cost(self._more(whole, opened, 1), piece.sketch.parameters, size, piece.sketch.macs(), opened.threads)

    def _more(self, large: Opened, small: Opened, count: int) -> dict[int, Timing]:
        """What each of `count` things takes that one network has beyond another; noise may say less than nothing."""
        timings = {}
        for batch in self.batches:
            both = rounds([large.runs[batch], small.runs[batch]], self.seconds)
            each = timing((both[:, 0] - both[:, 1]) / count)
            timings[batch] = replace(each, median=max(0.0, each.median))
        return timings


def measure(networks: Networks, stopwatch: Stopwatch, method: Method, calibration: Calibration) -> dict[int, Table]:
    """The tables of a model's UNet by the batch."""
    wholes = measure_wholes(networks, stopwatch)
    found = measure_pieces(networks.unet, networks.length, stopwatch, method)
    return tables_of(networks.unet, stopwatch, wholes, found, calibration)


def tables_of(
    unet: ElasticUNet,
    stopwatch: Stopwatch,
    wholes: Mapping[str, Cost],
    found: Sequence[tuple[Piece, Cost]],
    calibration: Calibration,
) -> dict[int, Table]:
    """What was measured as tables, by the batch; the whole networks are entries too, under the names of their parts."""
    tables = {}
    for batch in stopwatch.batches:
        entries = [cost.entry(piece.name, piece.level, batch) for piece, cost in found]
        entries = calibrate(entries, unet.architecture, wholes["unet"].timings[batch].median, calibration)
        tables[batch] = Table(
            device=device(),
            engine=stopwatch.engine.name,
            precision=stopwatch.engine.precision,
            threads=wholes["unet"].threads,
            batch=batch,
            sample_size=unet.config["sample_size"],
            widths=unet.architecture.widths,
            entries=(*(cost.entry(name, 0, batch) for name, cost in wholes.items()), *entries),
        )
    return tables


def measure_wholes(networks: Networks, stopwatch: Stopwatch) -> dict[str, Cost]:
    """What each of the three networks costs as a whole."""
    found: dict[str, Cost] = {}
    sketches = networks.sketches()
    with progress("measuring networks", 0, len(sketches)) as show:
        for name, sketch in sketches.items():
            found[name] = stopwatch.alone(sketch)
            show(len(found))
    return found


def measure_pieces(unet: ElasticUNet, length: int, stopwatch: Stopwatch, method: Method) -> list[tuple[Piece, Cost]]:
    """Every piece of a weightless UNet with its cost."""
    architecture = unet.architecture
    plain = unet_of(unet, architecture.without(*(block.name for block in architecture.blocks() if block.copy)))
    inside = set(pieces(plain.architecture))
    whole = stopwatch.open(unet_sketch(plain, length)) if method == "difference" else None
    known: dict[tuple[object, ...], Cost] = {}
    found, every = [], list(pieces_of(plain, length))
    with progress(f"measuring pieces, {method}", 0, len(every)) as show:
        for piece in every:
            if piece.shape in known:
                pass
            elif whole and piece.removable and (piece.name, piece.level) in inside:
                less = unet_of(plain, plain.architecture.without(piece.name))
                known[piece.shape] = stopwatch.difference(piece, whole, unet_sketch(less, length))
            elif piece.removable and method != "alone":
                known[piece.shape] = stopwatch.chain(piece)
            else:
                known[piece.shape] = stopwatch.alone(piece.sketch)
            found.append((piece, known[piece.shape]))
            show(len(found))
    return found


def calibrate(
    entries: Sequence[Entry], architecture: Architecture, whole: float, calibration: Calibration
) -> list[Entry]:
    """Let the entries come to what the network of `architecture` was measured to take as a whole.

    Args:
        entries: Of its pieces, without "rest".
        architecture: Of the whole network.
        whole: Milliseconds.
        calibration: "rest" puts what is missing there, "scale" multiplies every piece, "none" leaves it missing.
    """
    milliseconds = {(entry.name, entry.level): entry.milliseconds for entry in entries}
    total = math.fsum(milliseconds[piece] for piece in pieces(architecture) if piece != (REST, 0))
    factor = whole / total if calibration == "scale" else 1.0
    rest = Entry(REST, 0, whole - total if calibration == "rest" else 0.0, 0, 0, 0)
    scaled = (replace(one, milliseconds=one.milliseconds * factor, spread=one.spread * factor) for one in entries)
    return [*scaled, rest]
