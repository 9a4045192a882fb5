"""What the chain cannot be made from is one line, said as early as it can be known."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapfusion import recipes
from snapfusion.compress import Inputs, compress

pytestmark = pytest.mark.slow


def test_distilled_steps_are_placed_by_no_recipe(tiny_checkpoint: Path, tmp_path: Path, edit_json: Any) -> None:
    distilled = Path(shutil.copytree(tiny_checkpoint, tmp_path / "distilled"))
    edit_json(distilled / "scheduler" / "scheduler_config.json", distilled_steps=8)
    inputs = Inputs(distilled, tmp_path / "no data")
    with pytest.raises(ValueError, match=r"got .*distilled, distilled for 8 steps, and a recipe that places its own"):
        compress(recipes.stickers(), inputs, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def damaged(data: Path) -> None:
    """Put something else in a picture's place."""
    rows = [json.loads(row) for row in (data / "index.jsonl").read_text().splitlines()]
    with tarfile.open(data / "shards" / "0.tar", "w") as tar:
        for row in rows:
            entry = tarfile.TarInfo(f"{row['key']}.png")
            entry.size = 9
            tar.addfile(entry, io.BytesIO(b"no picture"[:9]))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda data: (data / "index.jsonl").unlink(), "without index.jsonl, expected a set"),
        (lambda data: (data / "shards" / "0.tar").write_bytes(b"x" * 2000), "expected a tar of pictures"),
        (lambda data: (data / "shards" / "0.tar").unlink(), "No such file or directory"),
        (damaged, "cannot identify image file"),
    ],
)
def test_missing_or_corrupt_data_is_one_line(tmp_path: Path, harm: Callable[[Path], None], said: str) -> None:
    inputs = recipes.inputs_of("tiny", None, None, None, tmp_path)
    data = Path(shutil.copytree(inputs.data, tmp_path / "data"))
    harm(data)
    with pytest.raises(ValueError, match=said):
        compress(recipes.tiny(), replace(inputs, data=data), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_chain(tmp_path: Path) -> None:
    inputs, recipe = recipes.inputs_of("tiny", None, None, None, tmp_path), recipes.tiny()
    assert recipe.distill_decoder is not None
    wild = replace(recipe, evolve=None, distill_steps=None)
    wild = replace(wild, distill_decoder=replace(recipe.distill_decoder, lr=1e30, warmup=0))
    with pytest.raises(ValueError, match=r"got a loss of (nan|inf) at step \d+, expected a finite one"):
        compress(wild, inputs, tmp_path / "run")
    assert not (tmp_path / "run" / "distill_decoder").exists()


def test_steps_cannot_be_distilled_and_placed(tmp_path: Path) -> None:
    """Said before anything is trained, not when the bundle is packed."""
    inputs, recipe = recipes.inputs_of("tiny", None, None, None, tmp_path), recipes.tiny()
    both = replace(recipe, export=replace(recipe.export, timestep_shift="search"))
    with pytest.raises(ValueError, match="got steps to distil and an export with timestep_shift 'search'"):
        compress(both, inputs, tmp_path / "run")
    assert not (tmp_path / "run").exists()
