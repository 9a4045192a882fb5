"""A checkpoint evolves: robust training, scores, Algorithm 1, fine-tuning; a smaller checkpoint for every budget.

base -> robust training -> scores -> cut, train, score -> copy, train, score -> 20 ms -> fine-tune -> OUT/20ms
                                                   and on from there, the same -> 12 ms -> fine-tune -> OUT/12ms
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snapfusion.checkpoint import hash_of, load_unet
from snapfusion.data.pairs import hash_of_set
from snapfusion.latents import train_and_cells
from snapfusion.metrics.estimate import Estimate
from snapfusion.model.architecture import Architecture
from snapfusion.stage_folder import hash_of_file, run_in_folder
from snapfusion.stages.evolve.config import FREE, Config
from snapfusion.stages.evolve.history import write_history
from snapfusion.stages.evolve.member import Member, finish
from snapfusion.stages.evolve.rounds import Rounds
from snapfusion.stages.evolve.search import Action, Cost, Goal, Scored, check_budgets, meet
from snapfusion.stages.evolve.setting import CACHE, Sources, prepare
from snapfusion.table import Price, Table, load_table

__all__ = ["Config", "Member", "Result", "run"]


@dataclass(frozen=True)
class Result:
    """What was evolved."""

    out: Path
    base: Price
    quality: Estimate
    """The base's, by the trial of the search."""
    members: tuple[Member, ...]

    def describe(self) -> str:
        """A line for each budget."""
        whole = f"base: {self.base.milliseconds:.2f} ms, {self.base.megabytes:.1f} MB, quality {self.quality.value:.3f}"
        lines = [
            f"{self.out / member.name}: {member.price.milliseconds:.2f} ms "
            f"({member.price.milliseconds / self.base.milliseconds:.0%}), {member.price.megabytes:.1f} MB, "
            f"quality {member.quality.value:.3f} [{member.quality.low:.3f}, {member.quality.high:.3f}]"
            for member in self.members
        ]
        return "\n".join([whole, *lines])


def run(config: Config, checkpoint: Path, table: Path, data: Path, out: Path, cache: Path | None = None) -> Result:
    """Evolve the checkpoint in folder `checkpoint` on the sticker set in `data`, priced by the file `table`.

    Writes a checkpoint for every budget (`OUT/20ms`), `history.json`, `path.svg`, and under `rounds/` the scores
    of every round. `cache` holds the judge's networks (see `snapfusion.metrics.weights`). The same call goes on.

    Raises:
        ValueError: a budget cannot be met, the table is not this UNet's, there is no set in `data`, or `out` holds
            something else.
        PausedError: `max_seconds` are over.
    """
    prices = load_table(table)
    architecture = load_unet(checkpoint).architecture
    goal = goal_of(config, prices, architecture)
    train_and_cells(data, core=False)  # refuses what is no set
    inputs = {
        "checkpoint": hash_of(checkpoint),
        "table": hash_of_file(table),
        "data": hash_of_set(data),
    }

    def work(folder: Path) -> dict[str, Any]:
        return evolve(config, Sources(checkpoint, data, prices, cache), goal, folder)

    figures = run_in_folder(out, config, inputs, work, FREE)
    members = tuple(map(Member.from_dict, figures["members"]))
    return Result(out, Price(**figures["base"]), Estimate(**figures["quality"]), members)


def evolve(config: Config, sources: Sources, goal: Goal, folder: Path) -> dict[str, Any]:
    """Algorithm 1 for one budget after the other, each from where the one before ended; returns the figures."""
    setting = prepare(config, sources, goal, folder)
    rounds, members = Rounds(folder / "rounds", setting), list[Member]()

    def perform(action: Action) -> Scored:
        scored = rounds.perform(action)
        write_history(setting, rounds.history, members, folder)
        return scored

    scored = perform(Action("start"))
    for budget in goal.budgets:
        scored = meet(budget, scored, goal.cost, config.limits, perform)
        members.append(finish(setting, rounds.network, budget, folder / goal.name(budget)))
    write_history(setting, rounds.history, members, folder)
    shutil.rmtree(folder / CACHE)
    return {
        "base": asdict(sources.table.price(setting.base.unet.architecture)),
        "quality": asdict(setting.quality),
        "protocol": setting.trial.protocol,
        "members": [asdict(member) for member in members],
    }


def goal_of(config: Config, table: Table, architecture: Architecture) -> Goal:
    """What the config asks of a UNet of this architecture.

    Raises `ValueError` where it asks for both kinds of budget or for neither, or a budget cannot be met.
    """
    if bool(config.budget_ms) == bool(config.budget_mb):
        got = "both" if config.budget_ms else "neither"
        raise ValueError(f"got {got} of --budget-ms and --budget-mb, expected one of them")
    costs = {"latency": milliseconds_by(table), "size": megabytes_by(table)}
    limited, unit = ("latency", "ms") if config.budget_ms else ("size", "MB")
    asked = config.budget_ms or config.budget_mb
    budgets = check_budgets(architecture, costs[limited], asked, unit)
    return Goal(budgets, costs[limited], unit, costs[config.objective or limited])


def milliseconds_by(table: Table) -> Cost:
    """What an architecture costs in milliseconds."""
    return lambda architecture: table.price(architecture).milliseconds


def megabytes_by(table: Table) -> Cost:
    """What an architecture costs in megabytes."""
    return lambda architecture: table.price(architecture).megabytes
