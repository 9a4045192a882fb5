"""Models side by side: evaluate each, count what it costs, time them in turns, write the report and the blind pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snapfusion.json_file import read_json, write_json
from snapfusion.stage_folder import TIMINGS, run_in_folder
from snapfusion.stages.evaluate.config import REAL_PICTURES, Config, Sources, inputs_of
from snapfusion.stages.evaluate.cost import costs_of
from snapfusion.stages.evaluate.evaluation import Evaluation, evaluate, read
from snapfusion.stages.evaluate.model import Drawing, Model, hash_of_model, open_model
from snapfusion.stages.evaluate.page import PAIRS, write_page
from snapfusion.stages.evaluate.pairs import blind_pairs, write_pairs
from snapfusion.stages.evaluate.report import Entry, pictures_of, report_of, shown_requests
from snapfusion.stages.evaluate.speed import measure_speed

REPORT, PAGE = "report.json", "report.html"


@dataclass(frozen=True)
class Result:
    """Where the report is, and what it says of each model."""

    page: Path
    evaluations: Mapping[str, Evaluation]

    def write_page(self, file: Path) -> Path:
        """Write the page to a file elsewhere too, and return that: it links to the blind pairs beside `page`."""
        folder = self.page.parent
        write_page(file, read_json(folder / REPORT), read_json(folder / TIMINGS), folder)
        return file

    def describe(self) -> str:
        """A line for each figure, and where to look."""
        return "\n\n".join([*(one.describe() for one in self.evaluations.values()), f"{self.page}"])


def run(config: Config, models: Sequence[Path], sources: Sources, out: Path, cache: Path | None = None) -> Result:
    """Hold the bundles or checkpoints in folders `models`, the base first, against real pictures and each other.

    Writes `report.json`, `report.html`, `pairs.html` (with two models or more), `timings.json`, and in `models/` the
    evaluation of each (see `evaluation.evaluate`). Present and of the same models, sets and settings: only read.

    Raises:
        ValueError: `out` holds something else, a folder of `models` no model, or a protocol lacks what it needs.
    """
    if not models:
        raise ValueError("got no model, expected the folders of some bundles or checkpoints")
    inputs = inputs_of(config, sources)
    inputs |= {f"model {place}": hash_of_model(folder) for place, folder in enumerate(models, 1)}

    def work(partial: Path) -> Mapping[str, Any]:
        how = Drawing(
            config.steps, config.scheduler, config.timestep_shift, config.guidance_stop, config.batch, config.device,
            bf16=config.precision == "bf16",
        )  # fmt: skip
        opened = [open_model(folder, how) for folder in models]
        return compare(config, opened, sources, partial, cache)

    figures = run_in_folder(out, config, inputs, work, alone=True)
    result = Result(out / PAGE, {label: read(record) for label, record in figures.items()})
    if not result.page.is_file():  # shows times, and so is none of the files that are hashed
        result.write_page(result.page)
    return result


def compare(
    config: Config, models: Sequence[Model], sources: Sources, work: Path, cache: Path | None = None
) -> dict[str, Any]:
    """Evaluate models and write everything but the page to folder `work`; returns each evaluation by its label."""
    entries: list[Entry] = []
    for label, model in zip(labels_of(models), models, strict=True):
        folder = Path("models") / f"{len(entries) + 1}"
        found = evaluate(config, model, sources, work / folder, cache)
        costs = {} if model.opened is None else costs_of(model.opened, model.folder)
        entries.append(Entry(label, folder.as_posix(), found, costs))
    requests = shown_requests(read_json(work / entries[0].folder / "requests.json"))
    pairs = blind_pairs(requests[: config.pairs], len(models), config.sides)
    write_json(work / REPORT, report_of(entries, requests[: min(config.grid, REAL_PICTURES)], pairs))
    if pairs:
        write_pairs(
            work / PAIRS, pairs, [work / pictures_of(entry.folder, entry.evaluation.guidance) for entry in entries]
        )
    if all(model.opened is not None for model in models):
        guidances = [entry.evaluation.guidance for entry in entries]
        write_json(work / TIMINGS, measure_speed(models, guidances, requests[0], config.runs))
    return {entry.label: asdict(entry.evaluation) for entry in entries}


def labels_of(models: Sequence[Model]) -> list[str]:
    """The models' names, with the place behind those that are not the only one of theirs."""
    names = [model.name for model in models]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, 1)]
