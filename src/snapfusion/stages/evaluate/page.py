"""report.html: the report for people, one file that needs no other. All it says is in report.json and timings.json."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfusion.stages.evaluate.chart import Point, curve_chart, intervals
from snapfusion.stages.evaluate.cost import PARTS
from snapfusion.stages.evaluate.evaluation import Evaluation, read
from snapfusion.stages.evaluate.exam import file_of
from snapfusion.stages.evaluate.figures import Figure
from snapfusion.stages.evaluate.markup import data_uri, render

PAIRS = "pairs.html"
PICTURE = 224  # pixels of a picture's side in the grid


@dataclass(frozen=True)
class Measure:
    """A figure as people read it."""

    name: str
    title: str
    better: str
    beside: str | None = None
    """Name of the figure that says what real pictures come to."""
    real: float | None = None
    """The same where it is so by definition."""


MEASURES = (
    Measure("fid", "FID", "lower", "fid_floor"),
    Measure("kid", "KID", "lower", "kid_floor"),
    Measure("clip_score", "CLIP score", "higher", "clip_score_real"),
    Measure("alignment", "alignment", "higher", real=1.0),
    Measure("recall_at_10", "R@10", "higher", "recall_at_10_real"),
    Measure("style", "style accuracy", "higher", "style_real"),
    Measure("memorised", "memorised", "lower"),
)
PART_TITLES = {"text_encoder": "text encoder", "unet": "UNet", "vae_decoder": "image decoder"}
TITLES = {measure.name: measure.title for measure in MEASURES}


@dataclass(frozen=True)
class Row:
    """A line of the table of figures: one measure, each model's figure, and what real pictures come to."""

    measure: Measure
    figures: list[Figure]
    real: Figure | None
    picture: str


@dataclass(frozen=True)
class Line:
    """A line of the table of costs: the same thing of each model, and by how many times the last has less of it."""

    title: str
    cells: list[tuple[str, str]]
    """A value, and what is said below it."""
    ratio: str


def write_page(file: Path, report: Mapping[str, Any], timings: Mapping[str, Any] | None, folder: Path) -> None:
    """Write the page of the report in `folder`, where its pictures are, wherever `file` may be.

    Without times it says nothing of them.
    """
    models = report["models"]
    evaluations = [read(model["evaluation"]) for model in models]
    speeds = timings["models"] if timings is not None else None
    page = render(
        "report.html",
        models=models,
        evaluations=evaluations,
        protocols=[(name, line, rows_of(evaluations, name)) for name, line in evaluations[0].protocols.items()],
        curve=curve_of(evaluations),
        totals=totals_of(models, evaluations, speeds),
        parts=parts_of(models, speeds),
        timings=timings,
        grid=[(request, pictures_for(request["key"], models, folder)) for request in report["grid"]],
        has_real=any(file_of(request["key"], real_folder(models, folder)).is_file() for request in report["grid"]),
        pairs=len(report["pairs"]),
        pairs_page=Path(os.path.relpath(folder / PAIRS, file.parent)).as_posix(),
    )
    partial = file.with_suffix(".part")
    partial.write_text(page, encoding="utf-8")
    partial.replace(file)


def rows_of(evaluations: Sequence[Evaluation], protocol: str) -> list[Row]:
    """The figures of a protocol, model by model."""
    named = [evaluation.figures[protocol] for evaluation in evaluations]
    rows: list[Row] = []
    for measure in MEASURES:
        if any(measure.name not in figures for figures in named):
            continue
        figures, real = [one[measure.name] for one in named], named[0].get(measure.beside or "")
        at = real.value if real is not None else measure.real
        rows.append(Row(measure, figures, real, intervals(figures, at)))
    return rows


def curve_of(evaluations: Sequence[Evaluation]) -> str | None:
    """Fig. 4: how well pictures fit their prompts against how far they are from real ones, over guidance."""
    curves = [evaluation.curve for evaluation in evaluations]
    names = (
        set.intersection(*(set(figures) for curve in curves for figures in curve.values())) if all(curves) else set()
    )
    x = next((name for name in ("clip_score", "alignment") if name in names), None)
    y = next((name for name in ("fid", "kid") if name in names), None)
    if x is None or y is None:
        return None
    series = [
        [Point(figures[x].value, figures[y].value, guidance) for guidance, figures in curve.items()] for curve in curves
    ]
    return curve_chart(series, TITLES[x], TITLES[y])


# ---------------------------------------------------------------------------------------------------------------------
# Costs


def totals_of(
    models: Sequence[Mapping[str, Any]], evaluations: Sequence[Evaluation], speeds: Sequence[Any] | None
) -> list[Line]:
    """What a whole model and a whole picture cost."""
    steps = [evaluation.steps for evaluation in evaluations]
    lines = [Line("steps", [(str(one.steps), one.scheduler) for one in evaluations], _ratio(steps))]
    if all(model["costs"] for model in models):
        lines += [
            _line("parameters", [model["parameters"] for model in models], _count),
            _line("stored", [model["bytes"] for model in models], _megabytes),
            _line("multiply-accumulates a picture", [model["macs_of_picture"] for model in models], _count),
        ]
    if speeds is not None:
        lines += [
            _timed("a picture, warm", [speed["warm_s"] for speed in speeds], _seconds),
            _timed("a picture, cold: from nothing", [speed["cold_s"] for speed in speeds], _seconds),
            _line("most memory held meanwhile", [speed["peak_bytes"] for speed in speeds], _megabytes),
        ]
    return lines


def parts_of(models: Sequence[Mapping[str, Any]], speeds: Sequence[Any] | None) -> list[tuple[str, list[Line]]]:
    """What each part costs."""
    if not all(model["costs"] for model in models):
        return []
    parts: list[tuple[str, list[Line]]] = []
    for part in PARTS:
        costs = [model["costs"][part] for model in models]
        lines = [
            _line("parameters", [cost["parameters"] for cost in costs], _count),
            _line("stored", [cost["bytes"] for cost in costs], _megabytes),
            _line("multiply-accumulates a row", [cost["macs"] for cost in costs], _count),
        ]
        if speeds is not None:
            lines.append(_timed("a call, warm", [speed["parts_ms"][part] for speed in speeds], _milliseconds))
        parts.append((PART_TITLES[part], lines))
    return parts


def _line(title: str, values: Sequence[float], show: Callable[[float], str]) -> Line:
    return Line(title, [(show(value), "") for value in values], _ratio(values))


def _timed(title: str, spreads: Sequence[Mapping[str, float]], show: Callable[[float], str]) -> Line:
    """Medians, and from where to where the runs went."""
    cells = [(show(one["median"]), f"{show(one['low'])} to {show(one['high'])}") for one in spreads]
    return Line(title, cells, _ratio([one["median"] for one in spreads]))


def _ratio(values: Sequence[float]) -> str:
    """How many times less the last is than the first."""
    return f"{values[0] / values[-1]:.2f}\N{MULTIPLICATION SIGN}" if len(values) > 1 and values[-1] else ""


def _count(value: float) -> str:
    """A number in the largest unit that leaves a whole part."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.3g} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms"


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def pictures_for(key: str, models: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """The pictures of a request by each model, then the real one if there is one, as URIs."""
    files = [file_of(key, folder / model["pictures"]) for model in models] + [file_of(key, real_folder(models, folder))]
    return [data_uri(file, PICTURE) for file in files if file.is_file()]


def real_folder(models: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Where an evaluation keeps real pictures."""
    return folder / models[0]["folder"] / "real"
