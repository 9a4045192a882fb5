"""The path of an evolution as a picture: quality against cost, a point for every round."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from snapfusion.metrics.estimate import Estimate

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 64, 24, 24, 52
COLOURS = {"start": "#555", "remove": "#c0392b", "copy": "#2471a3", "withdraw": "#b9770e", "finetune": "#1e8449"}


@dataclass(frozen=True)
class Point:
    """What a round came to. `kind` is its action's, or "finetune" for an end."""

    cost: float
    quality: Estimate
    kind: str
    title: str


def path_svg(points: Sequence[Point], budgets: Sequence[float], unit: str, quality: str) -> str:
    """The path as SVG: rounds joined in their order, ends apart, intervals upright, budgets dashed."""
    costs = [*(point.cost for point in points), *budgets]
    lows, highs = [point.quality.low for point in points], [point.quality.high for point in points]
    right, top, bottom = max(costs) * 1.05, max(highs), min(*lows, max(highs) - 1e-3)

    def x(cost: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * cost / right

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - value) / (top - bottom)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="black"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(unit)}</text>',
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(quality)}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        cost, value = share * right, bottom + share * (top - bottom)
        lines.append(f'<text x="{x(cost):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{cost:.3g}</text>')
        lines.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for budget in budgets:
        dashed = 'stroke="#999" stroke-dasharray="4 3"'
        lines.append(f'<path d="M{x(budget):.1f} {TOP}V{HEIGHT - BOTTOM}" {dashed}/>')
    rounds = [point for point in points if point.kind != "finetune"]
    joined = " ".join(f"{x(point.cost):.1f},{y(point.quality.value):.1f}" for point in rounds)
    lines.append(f'<polyline points="{joined}" fill="none" stroke="#ccc"/>')
    for point in points:
        colour, at = COLOURS[point.kind], x(point.cost)
        whisker = f"M{at:.1f} {y(point.quality.low):.1f}V{y(point.quality.high):.1f}"
        lines.append(f'<path d="{whisker}" stroke="{colour}" opacity="0.4"/>')
        circle = f'<circle cx="{at:.1f}" cy="{y(point.quality.value):.1f}" r="4" fill="{colour}">'
        lines.append(f"{circle}<title>{escape(point.title)}</title></circle>")
    names = [name for name in COLOURS if any(point.kind == name for point in points)]
    for row, name in enumerate(names):
        height = HEIGHT - BOTTOM - 12 - 16 * row
        lines.append(f'<circle cx="{WIDTH - 110}" cy="{height - 4}" r="4" fill="{COLOURS[name]}"/>')
        lines.append(f'<text x="{WIDTH - 100}" y="{height}">{name}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"
