"""One model against real pictures: choose its guidance, draw by each protocol, mark, draw the curve over guidance."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from snapfusion.bench import BATCH, open_bench
from snapfusion.checkpoint import Checkpoint
from snapfusion.data.choice import chosen
from snapfusion.data.pairs import load_index
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.json_file import write_json
from snapfusion.metrics import judge_a, judge_b
from snapfusion.metrics.alignment import alignment
from snapfusion.metrics.clip_score import Clip, load_clip
from snapfusion.metrics.features import VectorStore, image_vectors
from snapfusion.metrics.weights import default_cache
from snapfusion.stage_folder import run_in_folder
from snapfusion.stages.evaluate.coco import CaptionSet, caption_exam
from snapfusion.stages.evaluate.config import REAL_PICTURES, SHOWN, Captioned, Config, Sources, Stickers, inputs_of
from snapfusion.stages.evaluate.cross_check import CrossCheck, cross_check
from snapfusion.stages.evaluate.exam import Exam, draw_pictures, file_of, save_picture
from snapfusion.stages.evaluate.figures import Figure, neighbours
from snapfusion.stages.evaluate.model import Model
from snapfusion.stages.evaluate.protocol import PROTOCOLS
from snapfusion.stages.evaluate.stickers import request_of, sticker_exam

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What was measured on what."""

    model: str
    sha256: str
    engine: str
    steps: int
    scheduler: Scheduler
    side: int
    guidance: float
    guidance_choice: Mapping[str, float]
    """Alignment by judge A under each guidance that was tried; empty if it was given."""
    drawing: str
    """How the model draws, on a line."""
    protocols: Mapping[str, str]
    """By name, what is held against what."""
    figures: Mapping[str, Mapping[str, Figure]]
    """By protocol and name."""
    curve: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    """Figures of the first protocol by guidance."""
    cross_check: CrossCheck | None = None
    guidance_stop: float = 1.0
    """Share of the steps that were guided, the first ones."""

    def describe(self) -> str:
        """A line for each figure."""
        lines = [self.drawing]
        for protocol, figures in self.figures.items():
            lines += [self.protocols[protocol], *(f"  {name:<28}{one.describe()}" for name, one in figures.items())]
        if self.cross_check is not None:
            lines.append(self.cross_check.describe())
        return "\n".join(lines)


def evaluate(config: Config, model: Model, sources: Sources, out: Path, cache: Path | None = None) -> Evaluation:
    """Evaluate a model on real pictures.

    Writes `result.json`, `requests.json` (what was drawn), `pictures/` by guidance, `real/` and, of a sticker set,
    `neighbours.json` (the nearest training picture of every held-out one). A finished evaluation of the same is only
    read; one that was stopped goes on with the pictures that it has drawn. `cache` holds the feature networks and the
    vectors of real pictures (see `snapfusion.metrics.weights`).

    Raises:
        ValueError: `out` holds something else, or a protocol lacks what it needs.
    """
    inputs = {"model": model.sha256, **inputs_of(config, sources)}

    def work(partial: Path) -> Mapping[str, Any]:
        return asdict(_examine(config, model, sources, partial, cache))

    return read(run_in_folder(out, config, inputs, work, free=SHOWN))


def _examine(config: Config, model: Model, sources: Sources, work: Path, cache: Path | None) -> Evaluation:
    clip = load_clip(config.clip, config.device) if config.clip is not None else None
    exams = _exams(config, sources, clip, work, cache)  # before anything is drawn: it refuses what it cannot mark
    choice = {} if config.guidance is not None else try_guidances(config, model, sources, work, cache)
    guidance = config.guidance if config.guidance is not None else float(max(choice, key=lambda name: choice[name]))

    def sit(exam: Exam, guidance: float, count: int | None = None) -> dict[str, Figure]:
        folder = work / "pictures" / f"guidance-{guidance:g}"
        return exam.mark(draw_pictures(model, exam.requests[:count], guidance, folder, BATCH))

    figures = {exam.name: sit(exam, guidance) for exam in exams}
    curve = {f"{value:g}": sit(exams[0], value, config.curve_pictures) for value in config.curve}
    for exam in exams:
        (work / "real").mkdir(exist_ok=True)
        for request, image in zip(exam.requests, exam.real(REAL_PICTURES), strict=False):
            save_picture(image, file_of(request.key, work / "real"))
    write_json(work / "requests.json", {exam.name: [asdict(request) for request in exam.requests] for exam in exams})
    checked = None
    if config.cross_check and isinstance(model.opened, Checkpoint):
        requests = exams[0].requests[: config.cross_check]
        checked = cross_check(model.folder, model.opened, requests, model.steps, guidance, model.scheduler)
        if checked is None:
            log.info("%s: not cross-checked: diffusers has no pipeline for it, or cannot place its steps", model.name)
    return Evaluation(
        model.name, model.sha256, model.engine, model.steps, model.scheduler, model.side, guidance, choice,
        model.describe(guidance), {exam.name: exam.line for exam in exams}, figures, curve, checked,
        model.guidance_stop,
    )  # fmt: skip


def try_guidances(config: Config, model: Model, sources: Sources, work: Path, cache: Path | None) -> dict[str, float]:
    """Alignment under each guidance, by judge A, on prompts of `train` whose real pictures it has not seen.

    These are prompts that judge B was trained on, and so none that it reports on.
    """
    assert sources.data is not None
    pairs = load_index(sources.data, core=config.subset == "core")
    bench = open_bench(judge_a, sources.data, pairs, _store(cache), config.device, cache)
    train = [pair for pair in pairs if pair.split == "train"]
    asked = chosen(bench.unseen(train), config.guidance_pictures, "guidance")
    requests, real = [request_of(pair) for pair in asked], bench.verdict(bench.real(asked), asked)
    choice: dict[str, float] = {}
    for guidance in config.guidances:
        folder = work / "pictures" / f"guidance-{guidance:g}"
        vectors = image_vectors(bench.backbone, draw_pictures(model, requests, guidance, folder, BATCH))
        choice[f"{guidance:g}"] = alignment(bench.verdict(vectors, asked), real).value
    return choice


def _exams(config: Config, sources: Sources, clip: Clip | None, work: Path, cache: Path | None) -> list[Exam]:
    """The protocols with their sets of pictures, in the order of the config."""
    store, exams = _store(cache), dict[str, Exam]()
    if names := [name for name in config.protocols if name in get_args(Stickers)]:
        assert sources.data is not None
        pairs = load_index(sources.data, core=config.subset == "core")
        bench = open_bench(judge_b, sources.data, pairs, store, config.device, cache)
        exams |= {name: sticker_exam(PROTOCOLS[name], bench, sources.data, clip) for name in names}
        held_out = [pair for pair in pairs if pair.split != "train"]
        train = [pair for pair in pairs if pair.split == "train"]
        write_json(work / "neighbours.json", neighbours(bench, held_out, train))
    if names := [name for name in config.protocols if name in get_args(Captioned)]:
        assert sources.captions is not None
        assert sources.pictures is not None
        found = CaptionSet(sources.captions, sources.pictures, config.side, config.reference)
        backbone = judge_b.load_backbone(config.device, cache)
        exams |= {name: caption_exam(name, found, backbone, store, clip) for name in names}
    return [exams[name] for name in config.protocols]


def _store(cache: Path | None) -> VectorStore:
    return VectorStore((cache or default_cache()) / "vectors.sqlite")


def read(record: Mapping[str, Any]) -> Evaluation:
    """An evaluation as its result.json has it."""

    def figures(named: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Figure]]:
        return {name: {key: Figure(**value) for key, value in one.items()} for name, one in named.items()}

    checked = record["cross_check"]
    read = {"figures": figures(record["figures"]), "curve": figures(record["curve"])}
    return Evaluation(**{**record, **read, "cross_check": None if checked is None else CrossCheck(**checked)})
