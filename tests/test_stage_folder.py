"""A stage's folder: skipped when done, resumed when killed, refused when it is another's."""

import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from snapfusion.stage_folder import run_in_folder


@dataclass(frozen=True)
class Config:
    steps: int = 3
    widths: tuple[int, ...] = (1, 2)
    max_seconds: float = math.inf


INPUTS = {"checkpoint": "abc"}


def counting(log: list[str]) -> Callable[[Path], dict[str, float]]:
    """A stage that writes three files, one after another, and skips those that are there."""

    def work(folder: Path) -> dict[str, float]:
        for name in ("a", "b", "c"):
            if not (folder / name).exists():
                log.append(name)
                if len(log) == 2:
                    raise KeyboardInterrupt
                (folder / f"{name}.partial").write_text(name)
                (folder / f"{name}.partial").rename(folder / name)
        (folder / "timings.json").write_text("{}")
        return {"psnr_db": 32.5}

    return work


def test_a_killed_stage_goes_on_and_a_finished_one_is_read(tmp_path: Path) -> None:
    log: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_in_folder(tmp_path / "s", Config(), INPUTS, counting(log))
    assert not (tmp_path / "s").exists()
    first = run_in_folder(tmp_path / "s", Config(), INPUTS, counting(log))
    again = run_in_folder(tmp_path / "s", replace(Config(), max_seconds=5.0), INPUTS, counting(log), ("max_seconds",))
    assert first == again == {"psnr_db": 32.5}
    assert log == ["a", "b", "b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_the_files_of_another_config_or_input_are_refused(tmp_path: Path) -> None:
    run_in_folder(tmp_path / "s", Config(), INPUTS, lambda folder: {}, ("max_seconds",))
    with pytest.raises(ValueError, match=r"made with steps 3, expected 4; remove it"):
        run_in_folder(tmp_path / "s", Config(steps=4), INPUTS, lambda folder: {}, ("max_seconds",))
    with pytest.raises(ValueError, match=r"made with checkpoint 'abc', expected 'abd'"):
        run_in_folder(tmp_path / "s", Config(), {"checkpoint": "abd"}, lambda folder: {}, ("max_seconds",))


def test_a_stopped_stage_of_another_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_in_folder(tmp_path / "s", Config(), INPUTS, counting([]))
    with pytest.raises(ValueError, match=r"s\.partial, made with widths \[1, 2\], expected \[1\]"):
        run_in_folder(tmp_path / "s", Config(widths=(1,)), INPUTS, counting([]))


def test_what_refused_its_input_before_it_began_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    def refuse(folder: Path) -> dict[str, float]:
        raise ValueError("got 7 steps, expected a divisor of 8")

    with pytest.raises(ValueError, match="got 7 steps"):
        run_in_folder(tmp_path / "s", Config(steps=7), INPUTS, refuse)
    assert run_in_folder(tmp_path / "s", Config(steps=8), INPUTS, lambda folder: {"steps": 8}) == {"steps": 8}


def test_a_folder_in_which_another_process_works_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "s"

    def work(folder: Path) -> dict[str, float]:
        child = os.fork()
        if child == 0:
            try:
                run_in_folder(out, Config(), INPUTS, lambda folder: {})
            except ValueError as error:
                os._exit(7 if f"got {out}.partial, in which another process is at work; wait" in str(error) else 8)
            os._exit(0)
        return {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}

    assert run_in_folder(out, Config(), INPUTS, work) == {"status": 7}
    assert [file.name for file in out.iterdir()] == ["result.json"]


def run_and_die(out: Path, moment: int) -> bool:
    """Run a stage in a child that is killed when it turns to the file system for the `moment`-th time; did it live?"""
    child = os.fork()
    if child == 0:
        left = [moment]

        def kill(event: str, arguments: tuple[object, ...]) -> None:
            if event in ("open", "os.mkdir", "os.rename", "os.remove"):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        run_in_folder(out, Config(), INPUTS, counting(["", ""]))
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_a_stage_killed_at_any_moment_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    figures = run_in_folder(tmp_path / "undisturbed", Config(), INPUTS, counting(["", ""]))
    moment, lived = 0, False
    while not lived:
        moment += 1
        lived = run_and_die(tmp_path / f"{moment}", moment)
        assert run_in_folder(tmp_path / f"{moment}", Config(), INPUTS, counting(["", ""])) == figures
        results = [(tmp_path / name / "result.json").read_bytes() for name in ("undisturbed", f"{moment}")]
        assert results[0] == results[1]
    assert moment > 10


@pytest.mark.parametrize(("change", "said"), [(Path.unlink, "missing"), (lambda f: f.write_text("x"), "changed")])
def test_a_finished_stage_whose_files_changed_is_refused(
    tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    run_in_folder(tmp_path / "s", Config(), INPUTS, counting(["", ""]))
    change(tmp_path / "s" / "b")
    with pytest.raises(ValueError, match=f"b: {said}"):
        run_in_folder(tmp_path / "s", Config(), INPUTS, counting([]))


def test_timings_enter_no_hash(tmp_path: Path) -> None:
    run_in_folder(tmp_path / "s", Config(), INPUTS, counting(["", ""]))
    (tmp_path / "s" / "timings.json").write_text('{"seconds": 1}')
    run_in_folder(tmp_path / "s", Config(), INPUTS, counting([]))


def test_a_folder_that_no_stage_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="no finished stage"):
        run_in_folder(tmp_path / "s", Config(), INPUTS, counting([]))
    (tmp_path / "s").rename(tmp_path / "s.partial")
    with pytest.raises(ValueError, match="no stage has begun"):
        run_in_folder(tmp_path / "s", Config(), INPUTS, counting([]))
    assert (tmp_path / "s.partial" / "thesis.tex").read_text() == "mine"
