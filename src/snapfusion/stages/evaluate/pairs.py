"""Blind pairs: the same prompt and seed by the base and by another model, side by side, for people to choose from.

The page does not say which side is whose; report.json does, and `preferences` reads the answers with it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snapfusion.data.choice import number
from snapfusion.json_file import read_json
from snapfusion.metrics.estimate import Estimate, wilson
from snapfusion.stages.evaluate.exam import Request, file_of
from snapfusion.stages.evaluate.markup import data_uri, render

CHOICES = ("left", "right", "same")
LARGEST = 512  # pixels of a picture's side on the page


@dataclass(frozen=True)
class BlindPair:
    """What is compared, and where it stands."""

    key: str
    prompt: str
    seed: int
    model: int
    """Place of the model that stands against the base, which is 0."""
    base_left: bool


@dataclass(frozen=True)
class Preference:
    """How often people preferred a model to the base."""

    model: str
    wins: int
    losses: int
    ties: int
    share: Estimate
    """Of wins among the decided answers, with Wilson's 95% interval."""

    def describe(self) -> str:
        """All of it on a line."""
        decided = self.wins + self.losses
        return (
            f"{self.model}: preferred to the base in {self.wins} of {decided} decided answers, {self.share.value:.0%} "
            f"[{self.share.low:.0%}, {self.share.high:.0%}]; no difference in {self.ties} more"
        )


def blind_pairs(requests: Sequence[Request], models: int, seed: int) -> list[BlindPair]:
    """A pair for each request, in an order of its own; the models but the base take turns. None if there is but one."""
    if models < 2:
        return []
    order = sorted(requests, key=lambda request: number("pairs", str(seed), request.key))
    return [
        BlindPair(
            request.key,
            request.prompt,
            request.seed,
            1 + place % (models - 1),
            number("side", str(seed), request.key) % 2 == 0,
        )
        for place, request in enumerate(order)
    ]


def write_pairs(file: Path, pairs: Sequence[BlindPair], folders: Sequence[Path]) -> None:
    """Write the page, with all that it shows inside it. `folders` hold each model's pictures, the base's first."""
    shown = []
    for pair in pairs:
        sides = [data_uri(file_of(pair.key, folders[place]), LARGEST) for place in (0, pair.model)]
        left, right = sides if pair.base_left else reversed(sides)
        shown.append({"prompt": pair.prompt, "left": left, "right": right})
    file.write_text(render("pairs.html", id=identity([asdict(pair) for pair in pairs]), pairs=shown), encoding="utf-8")


def identity(pairs: Sequence[dict[str, Any]]) -> str:
    """What answers name, so that they are read with the pairs that they were given for."""
    return hashlib.sha256(json.dumps(list(pairs), sort_keys=True).encode()).hexdigest()[:16]


def preferences(answers: Sequence[Path], report: Path) -> list[Preference]:
    """What people said, from the files that the page of a report saved, for each model but the base.

    Raises:
        ValueError: a file is not what the page saves, or belongs to the page of another report.
    """
    record = read_json(report)
    counts = [Counter[str]() for _ in record["models"]]
    for file in answers:
        for place, choice in _answers(file, record["pairs"]):
            pair = record["pairs"][place]
            counts[pair["model"]][_verdict(choice, pair["base_left"])] += 1
    return [_preference(model["label"], count) for model, count in zip(record["models"], counts, strict=True)][1:]


def _preference(model: str, count: Counter[str]) -> Preference:
    wins, losses = count["win"], count["loss"]
    return Preference(model, wins, losses, count["tie"], wilson(wins, wins + losses))


def _answers(file: Path, pairs: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Places of pairs with what was chosen."""
    record = read_json(file)
    if record.get("pairs") != identity(pairs):
        raise ValueError(
            f"{file}: got answers to pairs {record.get('pairs')}, expected {identity(pairs)}, this report's"
        )
    answers = record.get("answers")
    places = {str(place): place for place in range(len(pairs))}
    if not isinstance(answers, dict) or not all(key in places and value in CHOICES for key, value in answers.items()):
        raise ValueError(f"{file}: expected answers {', '.join(CHOICES)} by the number of the pair")
    return [(places[key], value) for key, value in answers.items()]


def _verdict(choice: str, base_left: bool) -> str:
    """Of the model that stands against the base."""
    if choice == "same":
        return "tie"
    return "loss" if (choice == "left") == base_left else "win"
