"""The search alone: Algorithm 1 on another device's prices, or at another size, with scores that were measured before.

Positions mean the same at every width, so the sticker base's scores can stand in for those of Stable Diffusion, whose
own take a GPU: 38 blocks at the paper's 2.5 A100-hours. Such an answer is provisional until somebody scores and trains
the real weights. Nothing is scored again in between, so alignment is taken to be lost block by block.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from snapfusion.json_file import read_json
from snapfusion.metrics.estimate import Estimate
from snapfusion.model.architecture import Architecture
from snapfusion.stages.evolve.config import Config
from snapfusion.stages.evolve.report import describe_table, price_table, stage_table
from snapfusion.stages.evolve.scores import Score
from snapfusion.stages.evolve.search import Action, Cost, Limits, Scored, check_budgets, meet
from snapfusion.table import Table

Name = Literal["sd15"]
ARCHITECTURES: dict[Name, Callable[[], Architecture]] = {"sd15": Architecture.sd15}


@dataclass(frozen=True)
class Answer:
    """What the search proposes for a budget."""

    before: Architecture
    after: Architecture
    actions: tuple[Action, ...]
    unscored: tuple[str, ...]
    """Blocks that could go and stay for lack of a score."""
    table: Table
    scores_from: str

    def describe(self) -> str:
        """Blocks, prices, and how far to trust them."""
        prices = [(name, self.table.price(a)) for name, a in (("whole", self.before), ("proposed", self.after))]
        steps = "\n".join(f"- {action.kind}: {', '.join(action.blocks)}" for action in self.actions) or "- nothing"
        steps += f"\n- stay without a score: {', '.join(self.unscored)}" if self.unscored else ""
        return (
            f"Provisional: prices of {describe_table(self.table)}; quality from {self.scores_from}, by position.\n\n"
            f"{stage_table(self.before, self.after)}\n\n{price_table(prices)}\n\n{steps}"
        )


def search(name: Name, budget: float, table: Table, scores: Path, limits: Limits) -> Answer:
    """Search the positions of an architecture under `budget` milliseconds, with the scores in a file.

    A block without a score stays: where two widths differ, its ResNet cannot go at the size that was scored. Raises
    `ValueError` where the table was measured at other widths, or the budget is impossible.
    """
    whole, drops = ARCHITECTURES[name](), read_drops(scores)

    def cost(architecture: Architecture) -> float:
        return table.price(architecture).milliseconds

    reached, actions = [priced(whole, drops, cost)], list[Action]()
    (budget,) = check_budgets(whole, cost, (budget,), "ms", reached[0].smallest())

    def perform(action: Action) -> Scored:
        actions.append(action)
        reached.append(priced(action.applied(reached[-1].architecture), drops, cost))
        return reached[-1]

    end = meet(budget, reached[0], cost, limits, perform)
    unscored = tuple(b.name for b in whole.blocks() if b.removable and b.original not in drops)
    return Answer(whole, end.architecture, tuple(actions), unscored, table, str(scores))


def budgets(config: Config) -> tuple[float, ...]:
    """The milliseconds that a config asks for. Raises `ValueError` where it asks for none, or for megabytes."""
    if not config.budget_ms or config.budget_mb:
        raise ValueError("got no --budget-ms or a --budget-mb, expected milliseconds: that is what --price-only knows")
    return config.budget_ms


def priced(architecture: Architecture, drops: Mapping[str, Estimate], cost: Cost) -> Scored:
    """The scores of an architecture's blocks; a copy is taken to be worth as much as its original."""
    price = cost(architecture)
    known = [block for block in architecture.blocks() if block.removable and block.original in drops]
    scores = (Score(b.name, drops[b.original], price - cost(architecture.without(b.name))) for b in known)
    return Scored(architecture, tuple(scores))


def read_drops(file: Path) -> dict[str, Estimate]:
    """What each block is worth by a round of an evolution. Raises `ValueError` where `file` holds no scores."""
    data = read_json(file)
    try:
        return {score.block: score.drop for score in map(Score.from_dict, data["scores"])}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: got no scores, expected an evolution's rounds/00/round.json") from error
