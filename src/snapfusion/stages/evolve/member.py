"""The answer to one budget: the network that met it, fine-tuned, as a checkpoint."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from snapfusion.checkpoint import save_checkpoint
from snapfusion.json_file import read_json, write_json
from snapfusion.metrics.estimate import Estimate
from snapfusion.model.unet import ElasticUNet
from snapfusion.stages.evolve.finetune import finetune
from snapfusion.stages.evolve.report import model_card
from snapfusion.stages.evolve.rounds import TRAINING, timed
from snapfusion.stages.evolve.setting import Setting
from snapfusion.table import Price

EVOLUTION, ARCHITECTURE, LICENCES = "evolution.json", "architecture.json", "licences.json"


@dataclass(frozen=True)
class Member:
    """One of a family."""

    name: str
    budget: float
    price: Price
    quality: Estimate
    """After the fine-tuning, by the trial of the search."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Member":
        """What `asdict` made of one."""
        return cls(**{**data, "price": Price(**data["price"]), "quality": Estimate(**data["quality"])})


def finish(setting: Setting, network: Callable[[], ElasticUNet], budget: float, out: Path) -> Member:
    """Fine-tune a network that meets a budget and write it to `out` as a checkpoint, or read what is there.

    `network` is asked for it only where nothing is there: its round may have gone since. Raises `PausedError` at the
    deadline.
    """
    if (out / EVOLUTION).is_file():  # written last
        shutil.rmtree(out / TRAINING, ignore_errors=True)
        return Member.from_dict(read_json(out / EVOLUTION))
    config, student = setting.config, network()
    with timed(out, "fine-tuning"):
        fit = config.finetuning(setting.seconds_left())
        finetune(student, setting.base.unet, setting.data, config.distillation, fit, out / TRAINING)
    save_checkpoint(replace(setting.base, unet=student), out, torch.float16)
    price = setting.sources.table.price(student.architecture)
    member = Member(setting.goal.name(budget), budget, price, setting.trial.quality(student))
    (out / "README.md").write_text(card_of(setting, student, member), encoding="utf-8")
    write_json(out / ARCHITECTURE, student.architecture.to_dict())
    if (setting.sources.checkpoint / LICENCES).is_file():
        shutil.copyfile(setting.sources.checkpoint / LICENCES, out / LICENCES)
    write_json(out / EVOLUTION, asdict(member))
    shutil.rmtree(out / TRAINING, ignore_errors=True)  # only the main process of several wrote there
    return member


def card_of(setting: Setting, student: ElasticUNet, member: Member) -> str:
    """Its model card."""
    before = setting.base.unet.architecture
    base = (before, setting.sources.table.price(before), setting.quality)
    evolved = (student.architecture, member.price, member.quality)
    return model_card(member.name, base, evolved, setting.sources.table, setting.trial.protocol)
