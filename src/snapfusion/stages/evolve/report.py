"""What an evolution came to, for people: blocks stage by stage, as the paper's Table 3 has them, and the model card."""

from collections.abc import Sequence
from dataclasses import dataclass

from snapfusion.metrics.estimate import Estimate
from snapfusion.model.architecture import Architecture
from snapfusion.table import Price, Table


@dataclass(frozen=True)
class Stage:
    """A row of Table 3."""

    name: str
    level: int
    width: int
    attentions: int
    resnets: int


def stages(architecture: Architecture) -> list[Stage]:
    """The stages as the paper counts them: the deepest level, down and up, is part of "Mid"."""
    deepest = len(architecture.widths) - 1
    names = [f"Down-{level + 1}" for level in range(deepest)] + ["Mid"]
    names += [f"Up-{number + 1}" for number in range(deepest)]
    levels = [*range(deepest), deepest, *range(deepest - 1, -1, -1)]
    counts = {name: {"attention": 0, "resnet": 0} for name in names}
    for block in architecture.blocks():
        side = "Mid" if block.stage == "mid_block" or block.level == deepest else None
        down = block.stage.startswith("down")
        name = side or (f"Down-{block.level + 1}" if down else f"Up-{deepest - block.level}")
        counts[name][block.kind] += 1
    return [
        Stage(name, level, architecture.widths[level], counts[name]["attention"], counts[name]["resnet"])
        for name, level in zip(names, levels, strict=True)
    ]


def stage_table(before: Architecture, after: Architecture) -> str:
    """Blocks per stage before and after, as Markdown: the paper's Table 3."""
    lines = ["| stage | resolution | width | cross-attentions | ResNets |", "|---|---|---|---|---|"]
    for old, new in zip(stages(before), stages(after), strict=True):
        resolution = "latent" if old.level == 0 else f"latent / {2**old.level}"
        pairs = [(old.attentions, new.attentions), (old.resnets, new.resnets)]
        cells = [f"{a}" if a == b else f"**{a} → {b}**" for a, b in pairs]
        lines.append(f"| {old.name} | {resolution} | {old.width} | {' | '.join(cells)} |")
    return "\n".join(lines)


def price_table(prices: Sequence[tuple[str, Price]]) -> str:
    """What networks cost, the first being what the others are held against, as Markdown."""
    lines = ["| UNet | ms | parameters, M | MB | GMACs |", "|---|---|---|---|---|"]
    first = prices[0][1]
    for name, price in prices:
        share = f" ({price.milliseconds / first.milliseconds:.0%})" if price is not first else ""
        figures = f"{price.parameters / 1e6:.1f} | {price.megabytes:.1f} | {price.macs / 1e9:.2f}"
        lines.append(f"| {name} | {price.milliseconds:.2f}{share} | {figures} |")
    return "\n".join(lines)


def describe_table(table: Table) -> str:
    """Where prices are from, in a line."""
    return (
        f"{table.device}, {table.engine}, {table.precision}, {table.threads} threads, batch {table.batch}, "
        f"latent {table.sample_size}x{table.sample_size}"
    )


def model_card(
    name: str,
    base: tuple[Architecture, Price, Estimate],
    evolved: tuple[Architecture, Price, Estimate],
    table: Table,
    protocol: str,
) -> str:
    """README.md of an evolved checkpoint; each network is architecture, price by the table, quality by the trial."""
    (before, old, was), (after, new, now) = base, evolved
    qualities = [f"{title} {q.value:.3f} [{q.low:.3f}, {q.high:.3f}]" for title, q in (("base", was), (name, now))]
    return f"""# {name}

The base with a UNet that `snapfusion evolve` made smaller (SnapFusion, arXiv 2306.00980, section 3). Weights keep
Stable Diffusion's names; a copied block stands behind its original as `.copies.N`. In diffusers it loads after
`import snapfusion.model.unet`.

{stage_table(before, after)}

{price_table([("base", old), (name, new)])}

By the table of {describe_table(table)}.

Quality while it was searched ({protocol}): {"; ".join(qualities)}. Judge A was searched against: for figures to rely
on, run `snapfusion evaluate`.
"""
