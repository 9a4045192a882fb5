"""Algorithm 1: which blocks go and which are copied, as functions of architectures and scores alone.

    over budget    drop the blocks with the smallest value, several a round
    room left      put a copy of the block with the largest value right behind it
    in between     robust training and new scores

Ours where Algorithm 1 is silent: each budget is approached in a fixed number of equal cuts, a block that need not go
after all is put back, and a copy goes again unless pictures are worse without it, beyond the spread of that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from snapfusion.model.architecture import Architecture
from snapfusion.stages.evolve.scores import Score

Cost = Callable[[Architecture], float]
"""The price of an architecture in what the budget is in: milliseconds or megabytes."""


@dataclass(frozen=True)
class Action:
    """What a round does to the architecture before it trains. A copy is withdrawn where it has proved worthless."""

    kind: Literal["start", "remove", "copy", "withdraw"]
    blocks: tuple[str, ...] = ()

    def applied(self, architecture: Architecture) -> Architecture:
        """The architecture that comes of it."""
        change = architecture.with_copies if self.kind == "copy" else architecture.without
        return change(*self.blocks)


@dataclass(frozen=True)
class Limits:
    """How often each budget may cut and copy."""

    cuts: int = 3
    """Rounds in which blocks go."""
    copy_rounds: int = 1
    """Rounds in which copies are tried."""
    copies: int = 2
    """Blocks that are copied in such a round."""
    room: float = 0.0
    """Share of the budget that the last cut leaves to copies."""


@dataclass(frozen=True)
class Goal:
    """What is to be reached."""

    budgets: tuple[float, ...]
    """Largest first."""
    cost: Cost
    """What they limit."""
    unit: str
    saving: Cost
    """What a block's quality is divided by."""

    def name(self, budget: float) -> str:
        """What the answer to a budget is called: "20ms"."""
        return f"{budget:g}{self.unit.lower()}"


@dataclass(frozen=True)
class Scored:
    """An architecture, and the scores of those of its blocks that can go."""

    architecture: Architecture
    scores: tuple[Score, ...]

    def smallest(self) -> Architecture:
        """What is left when all of these have gone."""
        return self.architecture.without(*(score.block for score in self.scores))


def smallest(architecture: Architecture) -> Architecture:
    """What is left when every block that can go has gone."""
    return architecture.without(*(block.name for block in architecture.blocks() if block.removable))


def check_budgets(
    architecture: Architecture, cost: Cost, budgets: Sequence[float], unit: str, least_of: Architecture | None = None
) -> tuple[float, ...]:
    """The budgets, largest first. Raises `ValueError` where one cannot be met, or asks for nothing.

    `least_of` is the smallest that can be reached, where not every block that can go may.
    """
    least, whole = cost(least_of or smallest(architecture)), cost(architecture)
    gone = "every block that has a score" if least_of else "every block that can go"
    for budget in budgets:
        if budget < least:
            raise ValueError(
                f"got a budget of {budget:g} {unit}, expected at least {least:.4g}: that is what the UNet takes "
                f"without {gone}"
            )
        if budget >= whole:
            raise ValueError(f"got a budget of {budget:g} {unit}, expected less than the {whole:.4g} of the whole UNet")
    if not budgets or len(set(budgets)) < len(budgets):
        raise ValueError(f"got budgets {list(budgets)}, expected one or more, each once, such as --budget-ms 20 12")
    return tuple(sorted(budgets, reverse=True))


def removals(scored: Scored, cost: Cost, target: float) -> tuple[str, ...]:
    """The least valuable blocks, as many as bring the cost down to `target`; those that prove needless stay.

    Raises `ValueError` where all blocks that were scored do not reach it.
    """

    def cost_without(gone: Sequence[Score]) -> float:
        return cost(scored.architecture.without(*(score.block for score in gone)))

    gone: list[Score] = []
    for candidate in sorted(scored.scores, key=lambda score: score.value):
        if cost_without(gone) <= target:
            break
        gone.append(candidate)
    if (reached := cost_without(gone)) > target:
        raise ValueError(f"got a target of {target:g}, expected at least {reached:g}: no more blocks can go")
    # What a large block saves can make the small ones needless that went before it.
    for candidate in sorted(gone, key=lambda score: score.drop.value, reverse=True):
        others = [score for score in gone if score is not candidate]
        if candidate.drop.value > 0 and cost_without(others) <= target:
            gone = others
    return tuple(score.block for score in gone)


def copies(scored: Scored, cost: Cost, budget: float, most: int, refused: frozenset[str]) -> tuple[str, ...]:
    """The most valuable blocks that fit into the budget once more, at most `most`; originals in `refused` do not."""
    originals = {block.name: block.original for block in scored.architecture.blocks()}
    chosen: list[str] = []
    for candidate in sorted(scored.scores, key=lambda score: score.value, reverse=True):
        name = originals[candidate.block]
        useful = candidate.drop.value > 0 and candidate.saving > 0 and name not in refused and name not in chosen
        if len(chosen) < most and useful and cost(scored.architecture.with_copies(*chosen, name)) <= budget:
            chosen.append(name)
    return tuple(chosen)


def worthless_copies(before: Scored, after: Scored) -> tuple[str, ...]:
    """The copies that came in between and without which pictures are not worse for certain: they cost milliseconds."""
    new = added(before, after)
    return tuple(score.block for score in after.scores if score.block in new and score.drop.low <= 0)


def added(before: Scored, after: Scored) -> tuple[str, ...]:
    """The blocks that came in between."""
    known = {block.name for block in before.architecture.blocks()}
    return tuple(block.name for block in after.architecture.blocks() if block.name not in known)


def meet(budget: float, scored: Scored, cost: Cost, limits: Limits, perform: Callable[[Action], Scored]) -> Scored:
    """Algorithm 1: from an architecture with its scores to one that costs at most `budget`, with its own.

    `perform(action)` changes the network, trains it (Eq. 5) and scores its blocks again. It is called at most
    `limits.cuts + 2 * limits.copy_rounds` times. Raises `ValueError` where the budget cannot be met.
    """
    for cuts_left in range(limits.cuts, 0, -1):
        price = cost(scored.architecture)
        if price <= budget:
            break
        if cuts_left == 1:  # as far as to make room, where so much can go
            target = max(budget * (1 - limits.room), min(cost(scored.smallest()), budget))
        else:
            target = price - (price - budget) / cuts_left
        scored = perform(Action("remove", removals(scored, cost, target)))
    refused = frozenset[str]()
    for _ in range(limits.copy_rounds):
        chosen = copies(scored, cost, budget, limits.copies, refused)
        if not chosen:
            break
        before, scored = scored, perform(Action("copy", chosen))
        worthless = worthless_copies(before, scored)
        if worthless:
            refused |= {block.original for block in scored.architecture.blocks() if block.name in worthless}
            scored = perform(Action("withdraw", worthless))
    return scored
