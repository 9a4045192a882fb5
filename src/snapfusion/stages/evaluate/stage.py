"""A model against real pictures: choose its guidance, draw by each protocol, judge, write result.json."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from snapfusion.bench import BATCH, Bench, open_bench
from snapfusion.data.choice import chosen
from snapfusion.data.pairs import INDEX, Pair, load_index
from snapfusion.json_file import read_json, write_json
from snapfusion.metrics import judge_a, judge_b
from snapfusion.metrics.alignment import alignment
from snapfusion.metrics.features import Vectors, VectorStore, image_vectors
from snapfusion.metrics.weights import default_cache
from snapfusion.stages.evaluate.figures import Figure, measure, neighbours
from snapfusion.stages.evaluate.model import Model, open_model
from snapfusion.stages.evaluate.pictures import draw_pictures
from snapfusion.stages.evaluate.protocol import PROTOCOLS, Protocol

SOURCE = "source.json"
RESULT = "result.json"


@dataclass(frozen=True)
class Config:
    """What is drawn and how."""

    protocols: tuple[Literal["headline", "quick", "cells", "concepts"], ...] = ("quick", "cells")
    """headline: 5,000 prompts of `train`, with FID. quick: 1,000 of them. cells, concepts: all of the held-out ones."""
    subset: Literal["core", "full"] = "core"
    """The pictures that the model was trained on."""
    steps: int = 50
    """Steps of the sampler."""
    guidance: float | None = None
    """How closely to follow the prompt; None to choose among `guidances`."""
    guidances: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0, 6.0)
    """The one with the best alignment by judge A is reported by judge B, on other prompts."""
    guidance_pictures: int = 100
    """Pictures drawn with each of `guidances`."""
    batch: int = 8
    """Pictures drawn together; a bundle draws one at a time."""
    device: str = "cpu"
    """Torch device of a checkpoint and of the judges."""


@dataclass(frozen=True)
class Result:
    """What was measured on what."""

    model: str
    sha256: str
    engine: str
    steps: int
    guidance: float
    guidance_choice: Mapping[str, float]
    """Alignment by judge A under each guidance that was tried; empty if it was given."""
    figures: Mapping[str, Mapping[str, Figure]]
    """By protocol and name."""

    def describe(self) -> str:
        """A line for each figure."""
        lines = [f"{self.model} {self.sha256[:12]}, {self.engine}, {self.steps} steps, guidance {self.guidance:g}"]
        for protocol, figures in self.figures.items():
            lines += [f"{protocol}:", *(f"  {name:<28}{figure.describe()}" for name, figure in figures.items())]
        return "\n".join(lines)


def run(config: Config, model: Path, data: Path, out: Path, cache: Path | None = None) -> Result:
    """Evaluate the bundle or checkpoint in folder `model` on the sticker set in `data`.

    Writes `result.json`, `neighbours.json` (nearest training picture of every held-out one) and `pictures/`.

    A finished evaluation of the same is only read; one that was stopped goes on with the pictures it has drawn. `cache`
    holds the feature networks and the vectors of real pictures (see `snapfusion.metrics.weights`).

    Raises:
        ValueError: `out` holds something else, `model` holds no model, or `data` no set.
    """
    return evaluate(config, open_model(model, config.steps, config.batch, config.device), data, out, cache)


def evaluate(config: Config, model: Model, data: Path, out: Path, cache: Path | None = None) -> Result:
    """The same for any model that draws; see `run`."""
    card = hashlib.sha256((data / INDEX).read_bytes()).hexdigest() if (data / INDEX).is_file() else None
    source = json.loads(json.dumps({"config": asdict(config), "model": model.sha256, "data": card}))
    if out.exists():
        if not (out / RESULT).is_file() or read_json(out / RESULT).get("source") != source:
            raise ValueError(f"got --out {out}, which holds something else; remove it or name a new folder")
        return _read_result(out / RESULT)
    work = out.with_name(f".{out.name}.part")
    if (work / SOURCE).is_file() and read_json(work / SOURCE) != source:
        raise ValueError(f"got {work}, a stopped evaluation of something else; remove it or name another --out")
    pairs = load_index(data)
    write_json(work / SOURCE, source)

    store = VectorStore((cache or default_cache()) / "vectors.sqlite")
    wanted = [pair for pair in pairs if pair.core or config.subset == "full"]
    choice: dict[str, float] = {}
    guidance = config.guidance
    if guidance is None:
        bench = open_bench(judge_a, data, pairs, store, config.device, cache)
        choice = try_guidances(config, model, bench, wanted, work)
        guidance = float(max(choice, key=lambda name: choice[name]))
    bench = open_bench(judge_b, data, pairs, store, config.device, cache)
    figures = {name: follow(PROTOCOLS[name], model, bench, wanted, guidance, work) for name in config.protocols}
    held_out = [pair for pair in wanted if pair.split != "train"]
    train = [pair for pair in wanted if pair.split == "train"]
    write_json(work / "neighbours.json", neighbours(bench, held_out, train))
    result = Result(model.name, model.sha256, model.engine, model.steps, guidance, choice, figures)
    write_json(work / RESULT, {"source": source, **asdict(result)})
    (work / SOURCE).unlink()
    work.rename(out)
    return result


def try_guidances(config: Config, model: Model, bench: Bench, pairs: list[Pair], work: Path) -> dict[str, float]:
    """Alignment under each guidance, by judge A, on prompts of `train` whose real pictures it has not seen.

    These are prompts that judge B was trained on, and so none that it reports on.
    """
    train = bench.unseen([pair for pair in pairs if pair.split == "train"])
    asked = chosen(train, config.guidance_pictures, "guidance")
    real = bench.verdict(bench.real(asked), asked)
    choice: dict[str, float] = {}
    for guidance in config.guidances:
        vectors = _draw_and_embed(model, bench, asked, guidance, work)
        choice[f"{guidance:g}"] = alignment(bench.verdict(vectors, asked), real).value
    return choice


def follow(
    protocol: Protocol, model: Model, bench: Bench, pairs: list[Pair], guidance: float, work: Path
) -> dict[str, Figure]:
    """Draw what a protocol asks for and measure it."""
    reference = [pair for pair in pairs if pair.split == protocol.split]
    # Prompts on which judge B may report come first; the rest only fill up a protocol that needs more.
    fair = bench.unseen(reference)
    keys = {pair.key for pair in fair}
    rest = [pair for pair in reference if pair.key not in keys]
    asked = [*chosen(fair, None, protocol.split), *chosen(rest, None, protocol.split)][: protocol.pictures]
    return measure(protocol, bench, asked, _draw_and_embed(model, bench, asked, guidance, work), reference)


def _draw_and_embed(model: Model, bench: Bench, pairs: list[Pair], guidance: float, work: Path) -> Vectors:
    pictures = draw_pictures(model, pairs, guidance, work / "pictures" / f"guidance-{guidance:g}", BATCH)
    return image_vectors(bench.backbone, pictures)


def _read_result(file: Path) -> Result:
    values = {name: value for name, value in read_json(file).items() if name != "source"}
    figures = {
        protocol: {name: Figure(**figure) for name, figure in named.items()}
        for protocol, named in values["figures"].items()
    }
    return Result(**{**values, "figures": figures})
