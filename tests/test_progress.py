"""What people see: a bar on a terminal, lines elsewhere."""

import io
import logging
import re

import pytest
from rich.console import Console

from snapfusion import progress
from snapfusion.progress import duration, log_to_terminal


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 min 00 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations_have_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_terminal_gets_one_line_with_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(progress, "TERMINAL", terminal)
    with progress.progress("distill_steps", 2, 10) as show:
        show(3)
        show(3, 0.12345, 31.0)
    drawn = terminal.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(word in drawn for word in ("distill_steps", "3/10", "loss 0.1235", "31.0 img/s", "-:--:--"))


def test_elsewhere_a_line_is_logged_whenever_there_is_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "snapfusion"), progress.progress("evolve", 0, 10) as show:
        show(1)
        show(2, 0.5, 100.0)
    assert caplog.messages == ["evolve  step 2/10  loss 0.5000  100.0 img/s  0 min 00 s left"]


def test_logging_is_shown_with_the_time_of_day(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_terminal()
    logging.getLogger("snapfusion.fit").info("step %d", 3)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  step 3\n", capsys.readouterr().err)
