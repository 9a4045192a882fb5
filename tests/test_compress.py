"""The whole chain at its smallest: what it leaves, that it can be killed at any moment, and what it says is wrong."""

import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from snapfusion import recipes
from snapfusion import tiny as tiny_inputs
from snapfusion.bundle import read_bundle
from snapfusion.cli import main
from snapfusion.compress import compress, within
from snapfusion.generate import open_bundle
from snapfusion.model.architecture import Architecture
from snapfusion.recipes import inputs_of
from snapfusion.stage_folder import PausedError
from snapfusion.table import load_table

pytestmark = pytest.mark.slow

COMMAND = ["compress", "--recipe", "tiny", "--out"]  # as the README prints it
STAGES = ("profile", "evolve", "distill_steps/evolved-2", "distill_decoder", "evaluate")


def run_tiny(out: Path) -> None:
    """The chain; a killed child is started with this."""
    assert main([*COMMAND, str(out)]) == 0


@pytest.fixture(scope="module")
def children() -> Any:
    """Starts processes in which everything is imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["snapfusion.recipes"])
    ready = context.Process(target=time.sleep, args=(0,))
    ready.start()
    ready.join()
    return context


@pytest.fixture(scope="module")
def undisturbed(children: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a finished run, not to be written to, and how many seconds it took."""
    out, started = tmp_path_factory.mktemp("compress") / "run", time.monotonic()
    child = children.Process(target=run_tiny, args=(out,))
    child.start()
    child.join()
    assert child.exitcode == 0
    return out, time.monotonic() - started


@pytest.fixture
def run(undisturbed: tuple[Path, float]) -> Path:
    return undisturbed[0]


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_the_readme_prints_what_runs_here() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"\n<!-- runs in tests/test_compress.py -->\n```sh\nsnapfusion {' '.join(COMMAND)} run\n```\n" in readme


def test_it_leaves_a_bundle_a_report_and_a_result_for_every_stage(run: Path) -> None:
    assert all((run / stage / "result.json").is_file() for stage in STAGES)
    assert "<html" in (run / "report.html").read_text()[:500]
    bundle = read_bundle(run / "bundle")
    assert (bundle.manifest.defaults.steps, bundle.schedule.distilled_steps) == (2, 2)
    assert (run / link_of(run / "report.html", "pairs.html")).is_file()
    decoder = json.loads((run / "bundle" / "vae_decoder" / "config.json").read_text())
    assert decoder["decoder_block_out_channels"] == [4, 4]  # half of the tiny autoencoder's 8
    (picture,) = open_bundle(run / "bundle")("a fox", seed=1)
    assert picture.size == (64, 64)


def link_of(page: Path, name: str) -> str:
    """Where a link on a page leads."""
    (found,) = re.findall(rf'href="([^"]*{re.escape(name)})"', page.read_text())
    return found


def test_stable_diffusions_kind_goes_through_every_stage(tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    """CLIP, prediction of noise, diffusers' own autoencoder; the recipe for it, each stage as short as it goes."""
    made = tiny_inputs.make(tiny_inputs.Config(), tmp_path / "tiny")
    short: dict[str, Any] = {"images": 8, "batch": 4, "warmup": 1, "variants": 2, "precision": "no", "accumulate": 2}
    recipe, few = recipes.sd15(), recipes.tiny()
    assert recipe.velocity is not None
    assert recipe.distill_steps is not None
    assert recipe.evaluate is not None
    assert few.evolve is not None
    recipe = replace(
        recipe,
        velocity=replace(recipe.velocity, **short, pictures=2, picture_steps=2),
        profile=replace(recipe.profile, seconds=0.0, batches=(1,)),
        evolve=replace(few.evolve, guidance=7.5, accumulate=2, gradient_checkpointing=True),
        distill_steps=replace(recipe.distill_steps, **short, steps=2),
        distill_decoder=few.distill_decoder,
        export=replace(recipe.export, prompts=("a fox", "a boat")),
        evaluate=replace(recipe.evaluate, protocols=("cells",), steps=2, guidance=2.0, curve=(), runs=1, pairs=4),
    )
    inputs = replace(inputs_of("sd15", tiny_sd_checkpoint, made.data, None, tmp_path), cache=made.weights)
    result = compress(recipe, inputs, tmp_path / "run")
    velocity = json.loads((tmp_path / "run/velocity/checkpoint/scheduler/scheduler_config.json").read_text())
    assert velocity["prediction_type"] == "v_prediction"
    bundle = read_bundle(result.bundle)
    assert (bundle.manifest.defaults.steps, bundle.manifest.name) == (2, tiny_sd_checkpoint.name)
    base, compressed = json.loads((tmp_path / "run/evaluate/report.json").read_text())["models"]
    assert base["evaluation"]["cross_check"]["passed"]
    assert compressed["costs"]["unet"]["parameters"] < base["costs"]["unet"]["parameters"]
    (picture,) = open_bundle(result.bundle)("a fox", seed=1)
    assert picture.size == (64, 64)


def test_the_unet_is_within_the_budget(run: Path) -> None:
    table, recipe = run / "tiny" / "table.json", recipes.tiny()
    (budget,) = within(recipe.budget, recipe.evolve, table, run / "tiny" / "checkpoint").budget_ms
    prices = load_table(table)
    whole = prices.price(Architecture.sd15((8, 8, 16, 16))).milliseconds
    assert budget == pytest.approx(recipe.budget * whole, abs=1e-3)
    (evolved,) = (run / "evolve").glob("*/architecture.json")
    shipped = json.loads((run / "bundle" / "unet" / "config.json").read_text())["architecture"]
    assert shipped == json.loads(evolved.read_text())
    assert prices.price(Architecture.from_dict(shipped)).milliseconds <= budget


def test_a_second_run_does_nothing(run: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.suffix != ".sqlite"}
    started = time.monotonic()
    run_tiny(run)
    assert time.monotonic() - started < 15
    before.pop(run / "report.html")
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_chain_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    children: Any, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    run, seconds = undisturbed
    patience, kills, code = seconds / 10, 0, None
    while code is None:
        child = children.Process(target=run_tiny, args=(tmp_path / "killed",))
        child.start()
        child.join(timeout=patience)
        code = child.exitcode
        if code is None:
            child.kill()
            child.join()
            kills, patience = kills + 1, patience * 1.15
    assert code == 0
    assert kills >= 5
    assert_same(run, tmp_path / "killed")


def assert_same(one: Path, other: Path) -> None:
    """Weights, architectures, figures and pictures of two runs are equal, to the last bit."""
    kinds: dict[str, Callable[[Path], Any]] = {
        "**/*.safetensors": weights,
        "**/architecture.json": Path.read_bytes,
        "**/history.json*": Path.read_bytes,
        "**/result.json": lambda file: json.loads(file.read_text())["figures"],
        "**/*.png": Path.read_bytes,
    }
    for pattern, read in kinds.items():
        files = sorted(file.relative_to(one) for file in one.glob(pattern))
        assert files == sorted(file.relative_to(other) for file in other.glob(pattern))
        assert files
        for file in files:
            assert read(one / file) == read(other / file), file
    drawn = [open_bundle(out / "bundle")("a fox", seed=1)[0].tobytes() for out in (one, other)]
    assert drawn[0] == drawn[1]


def weights(file: Path) -> dict[str, bytes]:
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in load_file(file).items()}


def test_a_run_out_of_time_is_one_line_and_status_75(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, str(tmp_path / "run"), "--max-seconds", "0"]) == 75
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "run the same command to go on" in err


def test_a_stage_that_is_gone_is_made_again_to_the_same(copy: Path, run: Path) -> None:
    shutil.rmtree(copy / "distill_decoder")
    (copy / "report.html").unlink()
    run_tiny(copy)
    assert_same(run, copy)


def test_a_changed_recipe_is_refused_by_the_stage_that_it_changes(copy: Path) -> None:
    inputs = recipes.inputs_of("tiny", None, None, None, copy)
    recipe = recipes.tiny()
    assert recipe.distill_decoder is not None
    changed = replace(recipe, distill_decoder=replace(recipe.distill_decoder, lr=1.0))
    with pytest.raises(ValueError, match=r"distill_decoder, made with lr 0\.0005, expected 1\.0; remove it or name"):
        compress(changed, inputs, copy)


def test_a_broken_stage_says_which_file_and_what_to_do(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (copy / "evolve").glob("*/unet/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert main([*COMMAND, str(copy)]) == 2
    expected = f"{file}: changed since it was written; remove {copy / 'evolve'} to make it again"
    assert capsys.readouterr().err.splitlines()[-1] == f"snapfusion: {expected}"


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """On a file system of 16 MB, which the run's first files fill."""
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=16m none {small}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    command = f"{sys.executable} -m snapfusion {' '.join(COMMAND)} {small}/run; echo $?; find {small} -type f"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount}; {command}"], capture_output=True, text=True, check=True
    )
    status, *files = done.stdout.splitlines()
    assert status == "2"
    assert "No space left on device" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("free some space and run the same command again")
    assert not [file for file in files if file.endswith(("result.json", ".partial", "vgg16.safetensors"))]


def test_pausing_between_stages_keeps_what_is_done(tmp_path: Path) -> None:
    inputs = recipes.inputs_of("tiny", None, None, None, tmp_path)
    with pytest.raises(PausedError):
        compress(recipes.tiny(), inputs, tmp_path / "run", max_seconds=np.nextafter(0, 1))
    assert not (tmp_path / "run" / "bundle").exists()
