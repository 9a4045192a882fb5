"""The record of an evolution: a row for every round, and the path of quality against cost as a picture."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snapfusion.json_file import write_json
from snapfusion.stages.evolve.member import Member
from snapfusion.stages.evolve.plot import Point, path_svg
from snapfusion.stages.evolve.rounds import Round
from snapfusion.stages.evolve.search import added, worthless_copies
from snapfusion.stages.evolve.setting import Setting

HISTORY, PATH = "history.json", "path.svg"


def write_history(setting: Setting, rounds: Sequence[Round], members: Sequence[Member], folder: Path) -> None:
    """`history.json` and `path.svg` of the rounds so far and the networks that were fine-tuned."""
    rows = [row_of(rounds, place) for place in range(len(rounds))]
    ends = [asdict(member) for member in members]
    write_json(folder / HISTORY, {"base": asdict(setting.quality), "rounds": rows, "members": ends})
    price = {"ms": "milliseconds", "MB": "megabytes"}[setting.goal.unit]
    points = [Point(getattr(r.price, price), r.quality, r.action.kind, f"round {r.number}") for r in rounds]
    points += [Point(getattr(member.price, price), member.quality, "finetune", member.name) for member in members]
    svg = path_svg(points, setting.goal.budgets, f"{price} of the UNet, by the table", setting.trial.protocol)
    (folder / PATH).write_text(svg, encoding="utf-8")


def row_of(rounds: Sequence[Round], place: int) -> dict[str, Any]:
    """What a round did and came to; one that copied blocks says which copies stay."""
    done = rounds[place]
    row: dict[str, Any] = {"round": done.number, "action": done.action.kind, "blocks": list(done.action.blocks)}
    if done.action.kind == "copy":
        before = rounds[place - 1].scored
        gone = worthless_copies(before, done.scored)
        row["stay"] = [name for name in added(before, done.scored) if name not in gone]
    return {**row, **asdict(done.price), "quality": asdict(done.quality)}
