"""What evolution has to beat at the same price, after the same fine-tuning: choosing by hand, and by chance."""

from collections.abc import Mapping

import numpy as np

from snapfusion.model.architecture import Architecture
from snapfusion.stages.evolve.search import Cost


def by_hand(widths: tuple[int, ...]) -> Mapping[str, Architecture]:
    """BK-SDM's hand-picked removals (arXiv 2305.15798, Table 1) and the paper's Table 3, at any widths."""
    return {
        "bk-base": Architecture.bk_base(widths),
        "bk-small": Architecture.bk_small(widths),
        "bk-tiny": Architecture.bk_tiny(widths),
        "table3": Architecture.table3(widths),
    }


def by_chance(architecture: Architecture, cost: Cost, budget: float, seed: int) -> Architecture:
    """Removes blocks in an order drawn from `seed` until the budget is met; those that prove needless stay.

    Raises `ValueError` where all blocks that can go do not meet it.
    """
    names = [block.name for block in architecture.blocks() if block.removable]
    order = [names[place] for place in np.random.default_rng(seed).permutation(len(names))]
    gone: list[str] = []
    for name in order:
        if cost(architecture.without(*gone)) <= budget:
            break
        gone.append(name)
    if (reached := cost(architecture.without(*gone))) > budget:
        raise ValueError(f"got a budget of {budget:g}, expected at least {reached:g}: no more blocks can go")
    for name in list(gone):
        others = [other for other in gone if other != name]
        if cost(architecture.without(*others)) <= budget:
            gone = others
    return architecture.without(*gone)
