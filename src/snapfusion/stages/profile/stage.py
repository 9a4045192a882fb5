"""A checkpoint to its table, with the paper's Fig. 2; and the paper's Table 1 at Stable Diffusion's size."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snapfusion.checkpoint import hash_of, load_checkpoint
from snapfusion.model.architecture import Architecture
from snapfusion.runtimes import openvino
from snapfusion.stage_folder import hash_of_file, run_in_folder
from snapfusion.stages.profile.engines import Runtime, device, engine
from snapfusion.stages.profile.figure import Bar, bars, draw, format_bars
from snapfusion.stages.profile.measure import Calibration, Method, Stopwatch, measure, measure_wholes
from snapfusion.stages.profile.networks import Networks
from snapfusion.stages.profile.table1 import RUNS, Row, format_table1, peak_of, table1
from snapfusion.table import Entry, Table, load_table

TABLE, FIGURE = "table.json", "figure.png"


@dataclass(frozen=True)
class Config:
    """How to measure."""

    runtime: Runtime = "openvino"
    """What runs the networks."""
    method: Method = "chain"
    """How one block is told from the rest of the network."""
    calibration: Calibration = "scale"
    """Where the time goes that the whole UNet takes beyond its pieces."""
    batches: tuple[int, ...] = (1, 2)
    """Rows of the latent in a run; guidance runs two. table.json is of the first of them."""
    threads: int | None = None
    """How many the networks run on; by default the runtime decides."""
    weights: openvino.Weights = "fp16"
    """How OpenVINO stores weights."""
    seconds: float = 0.5
    """Time for each piece at each batch, at the least."""

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise ValueError(f"got batches {self.batches}, expected different counts of at least 1, such as 1 2")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"got threads {self.threads}, expected at least 1")

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(engine(self.runtime, self.threads, self.weights), self.batches, self.seconds)


@dataclass(frozen=True)
class Result:
    """The stage's folder and the figures in its result.json."""

    out: Path
    figures: Mapping[str, Any]

    @property
    def table(self) -> Path:
        return self.out / TABLE

    def describe(self) -> str:
        """The whole networks, where they were measured, and every stage of the UNet."""
        peak, price = self.figures["peak"], self.figures["price"]
        rows = [Row(**{**row, "entry": Entry(**row["entry"])}) for row in self.figures["table1"]]
        total = f"{price['milliseconds']:.2f} ms, {price['parameters'] / 1e6:.1f}M, {price['macs'] / 1e9:.2f} GMAC"
        bars = format_bars([Bar(**bar) for bar in self.figures["bars"]])
        return "\n\n".join(
            [f"{self.table}:", *([format_table1(rows, peak)] if rows else []), bars, f"the UNet's price: {total}"]
        )


def run(config: Config, checkpoint: Path, out: Path, table: Path | None = None) -> Result:
    """Measure the checkpoint in a folder, or check that a table measured elsewhere prices it.

    Args:
        config: How to measure; without meaning for a `table`.
        checkpoint: In diffusers' layout.
        out: Gets table.json, of the first batch, table-batch2.json and so on of the others, figure.png, result.json.
        table: A table's file, as a phone may have written it.
    """
    inputs = {"checkpoint": hash_of(checkpoint)} | ({} if table is None else {"table": hash_of_file(table)})

    def work(folder: Path) -> dict[str, Any]:
        networks = Networks.of(load_checkpoint(checkpoint))
        if table is None:
            return _profile(config, networks, folder)
        return {**_write(folder, [load_table(table)], networks.unet.architecture), "peak": None, "table1": []}

    return Result(out, run_in_folder(out, config, inputs, work, alone=True))


def run_sd15(config: Config, out: Path) -> Result:
    """`run` for Stable Diffusion v1.5's networks with random weights: prices need no more than the sizes."""
    inputs = {"networks": "Stable Diffusion v1.5's sizes"}

    def work(folder: Path) -> dict[str, Any]:
        return _profile(config, Networks.sd15(), folder)

    return Result(out, run_in_folder(out, config, inputs, work, alone=True))


def table1_sd15(config: Config) -> str:
    """The paper's Table 1 for this device as text: Stable Diffusion v1.5's networks as wholes, with random weights."""
    stopwatch = config.stopwatch()
    peak = peak_of(stopwatch.engine)
    wholes = measure_wholes(Networks.sd15(), stopwatch)
    entries = {batch: [cost.entry(name, 0, batch) for name, cost in wholes.items()] for batch in stopwatch.batches}
    heading = f"{device()}, {stopwatch.engine.name}, {stopwatch.engine.precision}, {wholes['unet'].threads} threads"
    return f"{heading}\n{format_table1(table1(entries, peak), peak)}"


def _profile(config: Config, networks: Networks, folder: Path) -> dict[str, Any]:
    """Measure, and write tables and picture; returns the figures."""
    stopwatch = config.stopwatch()
    peak = peak_of(stopwatch.engine)
    tables = measure(networks, stopwatch, config.method, config.calibration)
    wholes = {batch: [table.entry(name) for name in RUNS] for batch, table in tables.items()}
    rows = [asdict(row) for row in table1(wholes, peak)]
    return {**_write(folder, list(tables.values()), networks.unet.architecture), "peak": peak, "table1": rows}


def _write(folder: Path, tables: list[Table], architecture: Architecture) -> dict[str, Any]:
    """Write tables and picture; returns what they say of the checkpoint's own architecture."""
    first, *others = tables
    price = asdict(first.price(architecture))  # before anything is written: it may lack a piece
    first.save(folder / TABLE)
    for table in others:
        table.save(folder / f"table-batch{table.batch}.json")
    draw(first, architecture, folder / FIGURE)
    return {"price": price, "bars": [asdict(bar) for bar in bars(first, architecture)]}
