"""An evaluation, whole, on a tiny set of pictures; the feature networks alone are replaced by a small one."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snapfusion.autocast import has_bf16
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.pairs import INDEX, load_index
from snapfusion.metrics import judge_a, judge_b
from snapfusion.metrics.alignment import half_of
from snapfusion.stages.evaluate.config import Config, Sources
from snapfusion.stages.evaluate.evaluation import Evaluation
from snapfusion.stages.evaluate.evaluation import evaluate as evaluate_on
from snapfusion.stages.evaluate.exam import Request
from snapfusion.stages.evaluate.model import Drawing, Model, open_model
from snapfusion.stages.evaluate.protocol import PROTOCOLS
from snapfusion.stages.evaluate.speed import cold_command
from tiny_evaluation import Copier, model, small_backbone, sticker_set

IMPOSSIBLE: list[dict[str, Any]] = [
    {"runs": 0},
    {"batch": 0},
    {"protocols": ()},
    {"curve_pictures": 1},
    {"guidance": 60.0},
    {"curve": (math.nan,)},
]
CONFIG = Config(protocols=("quick", "cells"), guidance=3.0, guidances=(1.0, 3.0, 5.0), guidance_pictures=12, curve=())


def evaluate(config: Config, model: Model, data: Path, out: Path, cache: Path) -> Evaluation:
    return evaluate_on(config, model, Sources(data=data), out, cache)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sticker_set(tmp_path_factory.mktemp("stickers") / "set")


@pytest.fixture(autouse=True)
def small_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_a, "load_backbone", small_backbone)
    monkeypatch.setattr(judge_b, "load_backbone", small_backbone)


def test_a_model_that_copies_its_training_pictures(data: Path, tmp_path: Path) -> None:
    result = evaluate(CONFIG, model(Copier(data)), data, tmp_path / "out", tmp_path / "cache")
    quick, cells = result.figures["quick"], result.figures["cells"]
    assert quick["memorised"].value == 1
    assert "memorised" not in cells
    for figures in (quick, cells):
        assert figures["alignment"].value == pytest.approx(1)
        assert figures["recall_at_10"].value == figures["recall_at_10_real"].value
        assert figures["style"].value == figures["style_real"].value > 0.9
        assert figures["kid"].value < figures["kid_floor"].high
        assert "fid" not in figures
        assert all(figure.protocol for figure in figures.values())
    assert "24 drawn against 24 real" in cells["kid"].protocol


def test_a_model_that_draws_something_else(data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, guidance=1.0)
    result = evaluate(config, model(Copier(data)), data, tmp_path / "out", tmp_path / "cache")
    quick = result.figures["quick"]
    assert quick["alignment"].value < 0.4
    assert quick["memorised"].value < 0.2
    assert quick["kid"].low > quick["kid_floor"].high
    assert quick["recall_at_10_real"].value > 0.95


def test_judges_learn_from_the_asked_subset_alone(data: Path, tmp_path: Path) -> None:
    small, config = sticker_set(tmp_path / "core", core=True), replace(CONFIG, guidance=None, protocols=("cells",))
    of_core, of_full = (
        evaluate(config, model(Copier(source)), source, tmp_path / f"of {source.name}", tmp_path / source.name)
        for source in (small, data)
    )
    assert of_core.guidance == of_full.guidance
    assert of_core.figures == of_full.figures


def test_headline_has_fid_and_takes_all_of_train(data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, protocols=("headline",))
    copier = Copier(data)
    headline = evaluate(config, model(copier), data, tmp_path / "out", tmp_path / "cache").figures["headline"]
    train = [pair for pair in load_index(data, core=True) if pair.split == "train"]
    assert sorted(key for key, _ in copier.asked) == sorted(pair.key for pair in train)
    assert headline["fid"].value == pytest.approx(0, abs=1e-3)
    assert headline["fid_floor"].value > 0.1
    # The judge reports on those alone that it was not trained on.
    unseen = sum(half_of(pair.key) != judge_b.HALF for pair in train)
    assert f"{unseen} prompts whose real pictures it has not seen" in headline["alignment"].protocol


@pytest.mark.parametrize("left", [0, 1])
def test_a_protocol_without_pictures_is_refused_before_any_is_drawn(data: Path, tmp_path: Path, left: int) -> None:
    few, copier = with_cells(data, left, tmp_path / "set"), Copier(data)
    with pytest.raises(ValueError, match=f"got {left} pictures of cells in .*expected at least 2"):
        evaluate(replace(CONFIG, guidance=None), model(copier), few, tmp_path / "out", tmp_path / "cache")
    assert not copier.asked


def test_halves_of_one_picture_have_no_floor(data: Path, tmp_path: Path) -> None:
    few = with_cells(data, 2, tmp_path / "set")
    cells = evaluate(CONFIG, model(Copier(data)), few, tmp_path / "out", tmp_path / "cache").figures["cells"]
    assert "kid" in cells
    assert "kid_floor" not in cells


def with_cells(data: Path, count: int, folder: Path) -> Path:
    """The same set with so many of its held-out pictures."""
    shutil.copytree(data, folder)
    lines = (data / INDEX).read_text().splitlines(keepends=True)
    cells = [line for line in lines if json.loads(line)["split"] == "cells" and json.loads(line)["core"]]
    others = [line for line in lines if json.loads(line)["split"] != "cells"]
    (folder / INDEX).write_text("".join(others + cells[:count]))
    return folder


def test_guidance_is_chosen_by_judge_a_on_prompts_that_b_does_not_report_on(data: Path, tmp_path: Path) -> None:
    copier = Copier(data)
    config = replace(CONFIG, guidance=None, protocols=("cells",))
    result = evaluate(config, model(copier), data, tmp_path / "out", tmp_path / "cache")
    assert result.guidance == 3
    assert set(result.guidance_choice) == {"1", "3", "5"}
    tried = {key for key, guidance in copier.asked if guidance != 3}
    assert len(tried) == 12
    assert {half_of(key) for key in tried} == {judge_b.HALF}
    assert result.figures["cells"]["alignment"].value == pytest.approx(1)


def test_a_stopped_evaluation_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    whole = evaluate(CONFIG, model(Copier(data)), data, tmp_path / "whole", tmp_path / "cache")
    first, second = Copier(data, pictures=21), Copier(data)
    with pytest.raises(KeyboardInterrupt):
        evaluate(CONFIG, model(first), data, tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "out").exists()
    assert evaluate(CONFIG, model(second), data, tmp_path / "out", tmp_path / "cache") == whole
    assert len(first.asked) == 21
    assert not {key for key, _ in first.asked} & {key for key, _ in second.asked}
    again = Copier(data, pictures=0)
    assert evaluate(CONFIG, model(again), data, tmp_path / "out", tmp_path / "cache") == whole


def test_a_folder_that_holds_something_else_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="which is no finished stage; remove it or name another folder"):
        evaluate(CONFIG, model(Copier(data)), data, tmp_path / "out", tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        evaluate(CONFIG, model(Copier(data, pictures=1)), data, tmp_path / "new", tmp_path / "cache")
    with pytest.raises(ValueError, match=r"made with guidance 3\.0, expected 1\.0"):
        evaluate(replace(CONFIG, guidance=1.0), model(Copier(data)), data, tmp_path / "new", tmp_path / "cache")


def test_the_result_says_what_was_measured(data: Path, tmp_path: Path) -> None:
    result = evaluate(CONFIG, model(Copier(data)), data, tmp_path / "out", tmp_path / "cache")
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["source"]["inputs"]["model"] == written["figures"]["sha256"] == "0" * 64
    assert written["figures"]["figures"]["cells"]["kid"]["protocol"] == result.figures["cells"]["kid"].protocol
    lines = result.describe().splitlines()
    assert lines[0].startswith(
        "copier 000000000000 in none: 50 steps of ddim, guidance 3, 32 px; the seed of a picture"
    )
    assert (
        "cells: 24 pictures, one for each of as many cells prompts, against 24 real ones; sticker set"
        in result.protocols["cells"]
    )
    assert len(lines) == 1 + sum(1 + len(figures) for figures in result.figures.values())
    kept = sorted(file.name for file in (tmp_path / "out" / "pictures" / "guidance-3").iterdir())
    assert len(kept) == 24 + 72


def test_the_nearest_training_picture_of_every_held_out_one_is_told(data: Path, tmp_path: Path) -> None:
    evaluate(replace(CONFIG, protocols=("cells",)), model(Copier(data)), data, tmp_path / "out", tmp_path / "cache")
    neighbours = json.loads((tmp_path / "out" / "neighbours.json").read_text())
    things = {pair.key: pair.base for pair in load_index(data, core=True)}
    assert set(neighbours) == {pair.key for pair in load_index(data, core=True) if pair.split != "train"}
    assert np.mean([things[key] == things[near] for key, (near, _) in neighbours.items()]) > 0.9
    assert all(0.5 < cosine < 1 for _, cosine in neighbours.values())


def test_prompts_are_chosen_without_replacement_and_for_ever(data: Path) -> None:
    pairs = load_index(data)
    some = chosen(pairs, 10, "train")
    assert len({pair.key for pair in some}) == 10
    assert chosen(list(reversed(pairs)), 10, "train") == some
    assert chosen(pairs, 10, "guidance") != some
    assert len({seed_of(pair) for pair in pairs}) == len(pairs)
    assert not any(protocol.fid for protocol in PROTOCOLS.values() if protocol.split != "train")


def test_a_checkpoint_draws_the_same_picture_in_any_batch(tiny_checkpoint: Path) -> None:
    prompts, seeds = ["a red fox", "a blue whale", "a boat"], [1, 2, 3]
    together = list(open_model(tiny_checkpoint, Drawing(steps=2, batch=2)).draw(prompts, seeds, 3.0))
    alone = list(open_model(tiny_checkpoint, Drawing(steps=2, batch=1)).draw(prompts, seeds, 3.0))
    assert [image.dtype for image in together] == [np.uint8] * 3
    for a, b in zip(together, alone, strict=True):
        assert a.shape == b.shape
        assert abs(a.astype(int) - b.astype(int)).max() <= 1
    (other,) = open_model(tiny_checkpoint, Drawing(steps=2, batch=1)).draw(prompts[:1], [4], 3.0)
    assert not np.array_equal(other, together[0])


def test_a_unet_in_bfloat16_draws_nearly_the_same_and_says_so(tiny_checkpoint: Path) -> None:
    whole, half = (open_model(tiny_checkpoint, Drawing(steps=2, bf16=bf16)) for bf16 in (False, True))
    (a,), (b,) = (model.draw(["a red fox"], [1], 3.0) for model in (whole, half))
    assert np.array_equal(a, b) is not has_bf16(torch.device("cpu"))
    assert abs(a.astype(int) - b.astype(int)).mean() < 2
    assert ("bfloat16" in half.describe(3.0)) is has_bf16(torch.device("cpu"))
    assert "bfloat16" not in whole.describe(3.0)


@pytest.mark.parametrize("kind", ["tiny_checkpoint", "tiny_bundle"])
def test_a_model_draws_by_the_scheduler_that_was_asked_for(kind: str, request: pytest.FixtureRequest) -> None:
    folder, asked = request.getfixturevalue(kind), (["a red fox"], [1], 3.0)
    own, ddim, euler = (open_model(folder, Drawing(3, scheduler)) for scheduler in (None, "ddim", "euler"))
    assert (own.scheduler, ddim.scheduler, euler.scheduler) == ("ddim", "ddim", "euler")
    assert "3 steps of euler" in euler.describe(3.0)
    placed = open_model(folder, Drawing(3, timestep_shift=4.0))
    assert "3 steps of ddim with shift 4" in placed.describe(3.0)
    assert not np.array_equal(next(placed.draw(*asked)), next(own.draw(*asked)))
    first, same, other = (next(iter(model.draw(*asked))) for model in (own, ddim, euler))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", ["tiny_checkpoint", "tiny_bundle"])
def test_guidance_stops_where_it_was_asked_to(kind: str, request: pytest.FixtureRequest) -> None:
    folder, asked = request.getfixturevalue(kind), (["a red fox"], [1], 4.0)
    own, stopped = open_model(folder, Drawing(4)), open_model(folder, Drawing(4, guidance_stop=0.25))
    assert (own.guidance_stop, stopped.guidance_stop) == (1.0, 0.25)
    assert "guidance 4 in the first 1 of them" in stopped.describe(4.0)
    assert "of them" not in own.describe(4.0) + stopped.describe(1.0)
    assert not np.array_equal(next(iter(own.draw(*asked))), next(iter(stopped.draw(*asked))))
    assert "0.25" in cold_command(stopped, Request("a", "a red fox", 1), 4.0)


def test_a_stop_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"got guidance stop 1\.5, expected a share of the steps"):
        Config(guidance_stop=1.5)
    with pytest.raises(ValueError, match=r"got timestep shift 0, expected a number above 0"):
        Config(timestep_shift=0.0)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_index\.json"):
        open_model(tmp_path, Drawing(steps=2))


@pytest.mark.parametrize("fields", IMPOSSIBLE)
def test_what_cannot_be_drawn_or_counted_is_refused_at_once(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"got protocols .*, expected a protocol"):
        Config(**fields)
