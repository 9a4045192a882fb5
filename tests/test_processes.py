"""A stage in two processes, as `accelerate launch` starts them: the weights of one process, through a kill too."""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from snapfusion.bundle import read_bundle
from snapfusion.checkpoint import load_vae
from snapfusion.fit import FitConfig
from snapfusion.processes import count, main_first, meet, rank
from snapfusion.sampling import decode
from snapfusion.stage_folder import PARTIAL
from snapfusion.stages.distill_decoder import stage
from snapfusion.stages.distill_decoder.distance import draw_rows

CONFIG = stage.Config(
    latents=4,
    held_out=3,
    steps=2,
    guidance=2.0,
    drawn_together=2,
    images=12,
    batch=2,
    warmup=1,
    ema=0.5,
    precision="no",
)
KILLED_AT = 3  # of the six steps


def distil(checkpoint: Path, prompts: Path, cache: Path, out: Path) -> stage.Result:
    stage.FitConfig = partial(FitConfig, save_seconds=0, tracker=None)  # pyright: ignore[reportAttributeAccessIssue]
    return stage.run(CONFIG, checkpoint, prompts, out, cache=cache)


def die_in_the_middle(total: int, batch: int, seed: int, step: int) -> list[int]:
    if step == KILLED_AT and rank() == 1:
        os.abort()
    return draw_rows(total, batch, seed, step)


def launch(arguments: Sequence[str], *, dies: bool = False) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, **on_cpu(shards=True), "DIES": str(int(dies))}
    done = subprocess.run([*command, *arguments], timeout=300, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == dies, done.stderr


def on_cpu(shards: bool) -> dict[str, str]:
    """What `accelerate launch --cpu`, with or without `--use_fsdp`, leaves in the environment."""
    return {"ACCELERATE_USE_CPU": "1", "ACCELERATE_USE_FSDP": str(int(shards))}


@pytest.mark.slow
def test_two_processes_come_to_the_weights_of_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Each with half of every weight (FSDP); with the whole network (DDP) goes the chain below."""
    from snapfusion.tiny import write_judges

    write_judges(tmp_path / "weights")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fox\na blue whale, flat\na cat\na sticker of the fox")
    given = (tiny_checkpoint, prompts, tmp_path / "weights")
    alone = distil(*given, tmp_path / "alone")
    together, killed = tmp_path / "together", tmp_path / "killed"
    launch([*map(str, given), str(together)])
    launch([*map(str, given), str(killed)], dies=True)
    assert killed.with_name(f"{killed.name}{PARTIAL}").is_dir()
    launch([*map(str, given), str(killed)])
    assert not list(tmp_path.glob(f"*{PARTIAL}"))

    weights = [out / "checkpoint" / "vae" / "diffusion_pytorch_model.safetensors" for out in (together, killed)]
    other, again = map(load_file, weights)
    assert other.keys() == again.keys()
    assert all(torch.equal(again[name], weight) for name, weight in other.items())
    # Biases before a norm of single channels have no gradient but rounding's, so pictures are compared and not weights.
    latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    before, expected, found = (
        decode(load_vae(folder), latent) for folder in (tiny_checkpoint, alone.checkpoint, together / "checkpoint")
    )
    assert (found - expected).abs().max() < 0.02 * (before - expected).abs().max()


@pytest.mark.slow
def test_the_whole_chain_runs_in_two_processes(tmp_path: Path) -> None:
    """Both end, the main one with the bundle and the report, whatever order they reach the stages in."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--module", "snapfusion", "compress", "--recipe", "tiny", "--out", str(run)]
    environment = os.environ | on_cpu(shards=False)
    done = subprocess.run(command, timeout=500, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [str(run / "bundle"), str(run / "report.html")]  # one of them tells
    assert read_bundle(run / "bundle").schedule.distilled_steps == 2
    assert not list(run.rglob(f"*{PARTIAL}"))


def test_one_process_is_the_main_one_and_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (rank(), count()) == (0, 1)
    meet()
    assert main_first(lambda: 3) == 3


if __name__ == "__main__":
    if os.environ["DIES"] == "1":
        stage.draw_rows = die_in_the_middle
    distil(*map(Path, sys.argv[1:]))
