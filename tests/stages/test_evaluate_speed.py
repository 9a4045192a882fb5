"""Times and memory: what is called when, and what is counted to whom."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snapfusion.stages.evaluate.exam import Request
from snapfusion.stages.evaluate.model import Drawing, open_model
from snapfusion.stages.evaluate.speed import cold_command, measure_speed, parts_of, time_a_process, time_in_turns

MB = 1 << 20


def test_models_take_turns_and_the_first_call_does_not_count() -> None:
    called: list[str] = []
    calls = [
        {"unet": lambda: called.append("a unet"), "picture": lambda: called.append("a")},
        {"unet": lambda: called.append("b unet"), "picture": lambda: called.append("b")},
    ]
    taken = time_in_turns(calls, runs=2)
    assert called == ["a unet", "a", "b unet", "b"] * 3
    assert [{name: len(times) for name, times in one.items()} for one in taken] == [{"unet": 2, "picture": 2}] * 2


def test_a_process_holds_its_own_memory_and_none_of_its_parents() -> None:
    mine = np.ones(200 * MB, np.uint8)
    _, little = time_a_process([sys.executable, "-S", "-c", "pass"])
    _, much = time_a_process([sys.executable, "-S", "-c", f"x = bytearray({150 * MB})"])
    assert mine.all()
    assert little < 60 * MB
    assert 140 * MB < much - little < 160 * MB


def test_a_process_is_timed_from_start_to_end() -> None:
    seconds, _ = time_a_process([sys.executable, "-S", "-c", "import time; time.sleep(0.4)"])
    assert 0.4 <= seconds < 5


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no such picture"):
        time_a_process([sys.executable, "-S", "-c", "import sys; sys.exit('no such picture')"])


@pytest.mark.parametrize("kind", ["few_blocks", pytest.param("tiny_bundle", marks=pytest.mark.slow)])
@pytest.mark.parametrize("guided", [True, False])
def test_parts_are_called_as_drawing_calls_them(kind: str, guided: bool, request: pytest.FixtureRequest) -> None:
    model = open_model(request.getfixturevalue(kind), Drawing(steps=1))
    assert model.opened is not None
    parts = parts_of(model.opened, "a red fox", guided)
    shapes = {name: np.shape(call()) for name, call in parts.items()}
    rows = 2 if guided else 1
    assert shapes == {"text_encoder": (rows, 16, 16), "unet": (rows, 4, 16, 16), "vae_decoder": (1, 3, 64, 64)}


@pytest.mark.slow
def test_a_checkpoint_and_its_bundle_are_timed_side_by_side(few_blocks: Path, tiny_bundle: Path) -> None:
    models = [open_model(few_blocks, Drawing(steps=2)), open_model(tiny_bundle, Drawing(steps=2))]
    request = Request("fox", "-- a red fox", 2**32 - 1)  # a prompt that looks like a flag
    assert "generate" in cold_command(models[1], request, 2.0)
    assert "fp32" in cold_command(models[0], request, 2.0)
    assert "bf16" in cold_command(replace(models[0], bf16=True), request, 2.0)
    timings = measure_speed(models, [2.0, 2.0], request, runs=1)
    assert timings["machine"]["cores"] >= 1
    for speed in timings["models"]:
        assert speed["parts_ms"].keys() == {"text_encoder", "unet", "vae_decoder"}
        assert speed["cold_s"]["median"] > speed["warm_s"]["median"] > 0
        assert speed["peak_bytes"] > 50 * MB
    assert timings["models"][0]["peak_bytes"] > timings["models"][1]["peak_bytes"]  # torch is heavier than OpenVINO
