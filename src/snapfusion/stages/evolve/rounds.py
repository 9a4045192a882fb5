"""The rounds of an evolution on disk: change the network, train it (Eq. 5), score its blocks; each in its own folder.

rounds/03/unet/         the network after its training, until the next round is done
rounds/03/merits.json   what was measured without each block, as it is measured
rounds/03/round.json    what the round came to: written last, and only read from then on
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from snapfusion.checkpoint import WEIGHTS, load_unet, save_unet
from snapfusion.json_file import read_json, write_json
from snapfusion.metrics.estimate import Estimate, ratio_of_means
from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from snapfusion.processes import from_main
from snapfusion.progress import progress
from snapfusion.stage_folder import TIMINGS, PausedError
from snapfusion.stages.evolve.robust import train_robustly
from snapfusion.stages.evolve.scores import Merits, Score, score
from snapfusion.stages.evolve.search import Action, Cost, Scored
from snapfusion.stages.evolve.setting import Setting
from snapfusion.stages.evolve.trial import Trial
from snapfusion.table import Price

ROUND, MERITS, TRAINING = "round.json", "merits.json", "training"
WHOLE = "whole"  # beside the names of the blocks that it was measured without


@dataclass(frozen=True)
class Round:
    """What a round did and what came of it."""

    number: int
    action: Action
    price: Price
    quality: Estimate
    scored: Scored
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {
            "number": self.number,
            "action": asdict(self.action),
            "price": asdict(self.price),
            "quality": asdict(self.quality),
            "protocol": self.protocol,
            "architecture": self.scored.architecture.to_dict(),
            "scores": [score.to_dict() for score in self.scored.scores],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Round":
        """What `to_dict` wrote."""
        scores = tuple(map(Score.from_dict, data["scores"]))
        return cls(
            number=data["number"],
            action=Action(data["action"]["kind"], tuple(data["action"]["blocks"])),
            price=Price(**data["price"]),
            quality=Estimate(**data["quality"]),
            scored=Scored(Architecture.from_dict(data["architecture"]), scores),
            protocol=data["protocol"],
        )


@dataclass
class Rounds:
    """The rounds so far, and what a further one needs."""

    folder: Path
    setting: Setting
    history: list[Round] = field(default_factory=list)

    def perform(self, action: Action) -> Scored:
        """One more round, or the same one read from its folder. Raises `PausedError` at the deadline."""
        number = len(self.history)
        folder = self._folder(number)
        if not (folder / ROUND).is_file():
            done = self._work(number, action, folder)
            write_json(folder / ROUND, done.to_dict())
        done = Round.from_dict(read_json(folder / ROUND))
        assert done.action == action, (done.action, action)
        if number > 1:  # the first round's network is the one that bears all removals: it stays
            shutil.rmtree(self._folder(number - 1) / "unet", ignore_errors=True)
        self.history.append(done)
        return done.scored

    def network(self) -> ElasticUNet:
        """The network of the last round, or the base where there was none."""
        if not self.history:
            base = self.setting.base.unet
            return base.evolve(base.architecture).requires_grad_(True)  # a copy
        return self._load(self._folder(len(self.history) - 1))

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:02}"

    def _load(self, folder: Path) -> ElasticUNet:
        unet = load_unet(folder)
        unet.to(self.setting.base.unet.device)  # pyright: ignore[reportArgumentType]
        return unet

    def _work(self, number: int, action: Action, folder: Path) -> Round:
        if not (folder / "unet" / f"{WEIGHTS}.safetensors").is_file():
            unet = self._changed(action)
            with timed(folder, "training"):
                self._train(unet, number, folder / TRAINING)
            save_unet(unet, folder)
        shutil.rmtree(folder / TRAINING, ignore_errors=True)
        unet = self._load(folder)
        with timed(folder, "scoring"):
            merits = measure_blocks(self.setting.trial, unet, folder / MERITS, self.setting.seconds_left)
        quality = ratio_of_means(merits[WHOLE], self.setting.trial.scale)
        price = self.setting.sources.table.price(unet.architecture)
        scores = scores_of(unet.architecture, merits, self.setting.trial.scale, self.setting.goal.saving)
        scored = Scored(unet.architecture, scores)
        return Round(number, action, price, quality, scored, self.setting.trial.protocol)

    def _changed(self, action: Action) -> ElasticUNet:
        unet = self.network()
        if action.kind == "copy":
            return unet.evolve(action.applied(unet.architecture), self.setting.config.copies_start)
        return unet.without(*action.blocks)

    def _train(self, unet: ElasticUNet, number: int, folder: Path) -> None:
        setting = self.setting
        schooling = setting.config.schooling(max_seconds=setting.seconds_left())
        train_robustly(unet, setting.base.unet, setting.data, schooling, number, folder)


def measure_blocks(trial: Trial, unet: ElasticUNet, file: Path, seconds_left: Callable[[], float]) -> dict[str, Merits]:
    """The trial's figures for the whole network and without each of its blocks, kept in `file` as they come.

    Raises `PausedError` where no seconds are left.
    """
    known = read_json(file) if file.is_file() else {}
    names = [block.name for block in unet.architecture.blocks() if block.removable]
    unknown = [name for name in (WHOLE, *names) if name not in known]
    with progress("scoring networks", len(known), len(known) + len(unknown)) as show:
        for name in unknown:
            if from_main(lambda: seconds_left() <= 0):
                raise PausedError(f"scoring paused before {name}; run the same command to go on")
            known[name] = from_main(partial(_measured, trial, unet, {name} - {WHOLE}))
            write_json(file, known)
            show(len(known))
    return {name: np.asarray(figures, np.float32) for name, figures in known.items()}


def _measured(trial: Trial, unet: ElasticUNet, without: Set[str]) -> list[float]:
    return trial.measure(unet, without).tolist()


def scores_of(
    architecture: Architecture, merits: Mapping[str, Merits], scale: Merits, saving: Cost
) -> tuple[Score, ...]:
    """The score of each block from what was measured without it."""
    price = saving(architecture)
    return tuple(
        score(name, merits[WHOLE], without, scale, price - saving(architecture.without(name)))
        for name, without in merits.items()
        if name != WHOLE
    )


@contextmanager
def timed(folder: Path, name: str) -> Iterator[None]:
    """Add the seconds that something takes to `folder`'s timings, also where it is cut short."""
    started = time.monotonic()
    try:
        yield
    finally:
        file = folder / TIMINGS
        before = read_json(file) if file.is_file() else {}
        write_json(file, {**before, name: before.get(name, 0.0) + time.monotonic() - started})
