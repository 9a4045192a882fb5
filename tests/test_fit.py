"""The training loop: schedule, averages, shares of a batch, what it tells, and a disk that is full."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import nn
from torch.distributed.tensor import DTensor

import tiny_models
from snapfusion import autocast
from snapfusion.fit import WHOLE, Fit, FitConfig, Share, fit, learning_rate
from tiny_fit import CONFIG, loss, model


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    """accelerate keeps one precision for the whole process; other tests train in another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_learning_rate_rises_holds_and_falls() -> None:
    assert learning_rate(0, CONFIG) == pytest.approx(0.05 / 5)
    assert learning_rate(10, CONFIG) == pytest.approx(0.05)
    assert learning_rate(25, CONFIG) == pytest.approx(0.05 / 2)  # half way down a cosine
    assert learning_rate(30, CONFIG) == pytest.approx(0)


def test_it_learns(tmp_path: Path) -> None:
    net = model()
    before = loss(net, 1000).item()
    assert fit(net, loss, CONFIG, tmp_path).step == 30
    assert loss(net, 1000).item() < before / 2


def test_shares_are_the_batch_and_every_one_has_all_layers() -> None:
    rows = list(range(12))
    shares = [rows[Share(index, 3).rows] for index in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert rows[WHOLE.rows] == rows


def test_accumulating_changes_nothing(tmp_path: Path) -> None:
    first, second = model(), model()
    fit(first, loss, replace(CONFIG, accumulate=2), tmp_path / "a")
    fit(second, loss, CONFIG, tmp_path / "b")
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got a batch of 4, expected one that divides into 3 equal shares"):
        fit(model(), loss, replace(CONFIG, accumulate=3), tmp_path)


def train_here(folder: Path) -> None:
    """Train in this process, one of several if accelerate says so; leave what it saw and what it came to."""
    losses: list[float] = []
    held: set[int] = set()  # how many of the weights this process holds between steps

    def seen(net: nn.Module, step: int, share: Share) -> torch.Tensor:
        parts = (w.to_local() if isinstance(w, DTensor) else w for w in net.parameters())
        held.add(sum(part.numel() for part in parts))
        value = loss(net, step, share)
        losses.append(value.item())
        return value

    net = model()
    fit(net, seen, CONFIG, folder / "state")
    rank = PartialState().process_index
    weights = [weight.flatten().tolist() for weight in net.parameters()]
    (folder / f"{rank}.json").write_text(json.dumps({"losses": losses, "weights": weights, "held": max(held)}))


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
def test_two_processes_see_the_losses_of_one_with_twice_the_batch(tmp_path: Path, shards: bool) -> None:
    """Each with the whole network (DDP), or with half of every weight (FSDP)."""
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
    train_here(tmp_path / "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "ACCELERATE_USE_FSDP": str(int(shards))}
    subprocess.run([*launch, __file__, str(tmp_path / "2")], check=True, timeout=300, env=environment)
    alone, a, b = (json.loads((tmp_path / name).read_text()) for name in ("1/0.json", "2/0.json", "2/1.json"))
    halves = [(x + y) / 2 for x, y in zip(a["losses"], b["losses"], strict=True)]
    assert halves == pytest.approx(alone["losses"], rel=1e-5)
    assert a["losses"] != b["losses"]
    assert a["held"] + b["held"] == (1 if shards else 2) * alone["held"]
    assert a["weights"] == b["weights"]
    for ours, theirs in zip(a["weights"], alone["weights"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    trained = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        unet = tiny_models.tiny_unet().train()
        entered = []
        unet.mid_block.resnets["0"].register_forward_pre_hook(lambda *_, entered=entered: entered.append(1))

        def loss(net: nn.Module, step: int, share: Share) -> torch.Tensor:
            return net(torch.ones(1, 4, 16, 16), 3, torch.ones(1, 5, tiny_models.WIDTH)).sample.square().mean()

        config = replace(CONFIG, steps=2, batch=1, gradient_checkpointing=checkpointing)
        fit(unet, loss, config, tmp_path / str(checkpointing))
        trained.append(unet.state_dict())
        assert len(entered) == 2 * (1 + checkpointing)  # once more in every backward pass
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight)


def test_a_tracker_is_told(tmp_path: Path) -> None:
    fit(model(), loss, replace(CONFIG, tracker="tensorboard"), tmp_path / "fit")
    assert list((tmp_path / "curves" / "fit" / "snapfusion").glob("events*"))  # they outlive what `fit` goes on from
    with pytest.raises(ValueError, match="got tracker 'pigeon', expected one of"):
        fit(model(), loss, replace(CONFIG, tracker="pigeon"), tmp_path)


def test_progress_is_lines_where_there_is_no_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "snapfusion"):
        fit(model(), loss, replace(CONFIG, name="base"), tmp_path)
    lines = caplog.messages
    assert len(lines) == 6
    assert re.fullmatch(r"base  step 5/30  loss \d+\.\d{4}  \d+\.\d img/s  0 min \d\d s left", lines[0])


@pytest.mark.parametrize("here", [True, False])
def test_bfloat16_is_left_where_the_device_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, here: bool
) -> None:
    monkeypatch.setattr(autocast, "has_bf16", lambda device: here)
    net, computed = nn.Sequential(nn.Linear(3, 1)), set[torch.dtype]()
    net[0].register_forward_hook(lambda module, inputs, output: computed.add(output.dtype))
    with caplog.at_level("INFO", "snapfusion"):
        fit(net, loss, replace(CONFIG, steps=1, precision="bf16", name="base"), tmp_path)
    assert computed == {torch.bfloat16 if here else torch.float32}
    told = "base in float32: cpu has no fast bfloat16"
    assert (told in caplog.messages) is not here


def test_the_weights_it_leaves_are_the_average(tmp_path: Path) -> None:
    """One parameter, gradient 1, plain arithmetic: Adam moves it by lr a step, and the average trails behind."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    config = FitConfig(
        steps=3, batch=1, lr=1.0, warmup=0, weight_decay=0, ema=0.5, clip=1e9, precision="no", log_steps=1
    )
    fit(net, lambda net, step, share: net(torch.ones(1, 1)).sum(), config, tmp_path)
    average, weight = 0.0, 0.0
    for step in range(1, 4):
        weight -= 1.0
        decay = min(0.5, 1 - step**-0.75) if step > 1 else 0.0  # the warm-up of diffusers' EMAModel
        average = decay * average + (1 - decay) * weight
    assert net.weight.item() == pytest.approx(average, abs=1e-5)


def test_observe_sees_averages_and_may_stop(tmp_path: Path) -> None:
    seen: list[int] = []

    def observe(step: int, net: nn.Module) -> bool:
        seen.append(step)
        return step == 10

    ended = fit(model(), loss, CONFIG, tmp_path, observe, observe_steps=5)
    assert seen == [5, 10]
    assert isinstance(ended, Fit)
    assert ended.step == 10
    again = fit(model(), loss, CONFIG, tmp_path, observe, observe_steps=5)
    assert seen == [5, 10, 10]  # what a kill may have lost; and it trains no further
    assert again.step == 10


@pytest.mark.slow
def test_a_full_disk_is_an_os_error_and_the_last_good_state_stays(tmp_path: Path) -> None:
    """The system lets this process write no file of more than 1,000 bytes."""
    fit(model(), loss, replace(CONFIG, steps=1), tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    limit = "import resource as r, signal; r.setrlimit(r.RLIMIT_FSIZE, (1000, 1000)); "
    code = f"{limit}signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import test_fit as t, sys, pathlib as p"
    fill = "t.fit(t.model(), t.loss, t.CONFIG, p.Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; {fill}", str(tmp_path)]
    ended = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1].startswith("OSError: [Errno 27] File too large")
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


if __name__ == "__main__":
    train_here(Path(sys.argv[1]))
