"""Charts as SVG that takes its colours from the page: the paper's Fig. 4, and intervals beside one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from snapfusion.stages.evaluate.figures import Figure

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 16, 48  # room around the plot
BAR_WIDTH, BAR_STEP = 180, 12  # of intervals


@dataclass(frozen=True)
class Point:
    """Where a model is at one guidance."""

    x: float
    y: float
    guidance: str


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of the picture."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value is."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def curve_chart(series: Sequence[Sequence[Point]], x_title: str, y_title: str) -> str:
    """A line for each model through its points in their order, each point with its guidance: the paper's Fig. 4."""
    points = [point for line in series for point in line]
    x_ticks = ticks([point.x for point in points])
    y_ticks = ticks([point.y for point in points])
    x = Axis(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    y = Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y, x_ticks, y_ticks, x_title, y_title)]
    for place, line in enumerate(series):
        ends = " ".join(f"{x.place(point.x):.1f},{y.place(point.y):.1f}" for point in line)
        parts.append(f'<g class="m{place}"><polyline class="line" points="{ends}"/>')
        for point in line:
            across, down = x.place(point.x), y.place(point.y)
            parts.append(f'<circle class="dot" cx="{across:.1f}" cy="{down:.1f}" r="4"/>')
            parts.append(f'<text class="name" x="{across + 7:.1f}" y="{down - 7:.1f}">{point.guidance}</text>')
        parts.append("</g>")
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def intervals(figures: Sequence[Figure], real: float | None) -> str:
    """A dot with its interval for each model below one another, and a line where real pictures are."""
    ends = [end for figure in figures for end in (figure.low, figure.high)] + ([] if real is None else [real])
    low, high = min(ends), max(ends)
    margin = (high - low) * 0.06 or 1.0
    axis, height = Axis(low - margin, high + margin, 0, BAR_WIDTH), BAR_STEP * len(figures)
    parts = []
    if real is not None:
        across = axis.place(real)
        parts.append(f'<line class="real" x1="{across:.1f}" x2="{across:.1f}" y1="0" y2="{height}"/>')
    for place, figure in enumerate(figures):
        down, start, end = BAR_STEP * (place + 0.5), axis.place(figure.low), axis.place(figure.high)
        parts.append(
            f'<g class="m{place}"><line class="line" x1="{start:.1f}" x2="{end:.1f}" y1="{down}" y2="{down}"/>'
        )
        parts.append(f'<circle class="dot" cx="{axis.place(figure.value):.1f}" cy="{down}" r="3.5"/></g>')
    return f'<svg class="intervals" viewBox="0 0 {BAR_WIDTH} {height}">{"".join(parts)}</svg>'


def ticks(values: Sequence[float], most: int = 7) -> list[float]:
    """Round numbers, evenly spaced, the first below all values and the last above: at least 2, at most about `most`."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [place * step for place in range(first, max(last, first + 1) + 1)]


def _frame(x: Axis, y: Axis, x_ticks: Sequence[float], y_ticks: Sequence[float], x_title: str, y_title: str) -> str:
    """Grid, numbers and titles."""
    parts = []
    for value in x_ticks:
        across = x.place(value)
        parts.append(f'<line class="grid" x1="{across:.1f}" x2="{across:.1f}" y1="{y.end}" y2="{y.start}"/>')
        parts.append(f'<text class="tick" x="{across:.1f}" y="{y.start + 18}" text-anchor="middle">{value:.4g}</text>')
    for value in y_ticks:
        down = y.place(value)
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{down:.1f}" y2="{down:.1f}"/>')
        parts.append(f'<text class="tick" x="{x.start - 8}" y="{down + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    middle_x, middle_y = (x.start + x.end) / 2, (y.start + y.end) / 2
    parts.append(f'<text class="title" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{x_title}</text>')
    turned = f'transform="translate(14 {middle_y}) rotate(-90)"'
    parts.append(f'<text class="title" {turned} text-anchor="middle">{y_title}</text>')
    return "".join(parts)
