"""What people see while something trains: a bar on a terminal, elsewhere a line now and then."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from snapfusion.processes import rank

log = logging.getLogger(__name__)

TERMINAL = Console(stderr=True)
SILENCE = 30.0
"""Seconds between two lines of what has no loss to tell."""


class Show(Protocol):
    """Called after every step; with the loss and the pictures a second where they are known."""

    def __call__(self, step: int, loss: float | None = None, rate: float | None = None) -> None: ...


def log_to_terminal() -> None:
    """Let what is logged be seen: above the bar on a terminal, else with the time of day before it."""
    if TERMINAL.is_terminal:
        handler: logging.Handler = RichHandler(console=TERMINAL, show_path=False, show_level=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    ours = logging.getLogger("snapfusion")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO if rank() == 0 else logging.WARNING)  # of several processes, one tells


@contextmanager
def progress(name: str, first: int, steps: int) -> Iterator[Show]:
    """Show how far `name` is on its way from step `first` to `steps`, how well it does, and how long it will take."""
    if not TERMINAL.is_terminal or rank() != 0:
        yield _Lines(name, first, steps)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=TERMINAL, speed_estimate_period=120) as bar:
        task = bar.add_task(name, completed=first, total=steps, figures="")

        def show(step: int, loss: float | None = None, rate: float | None = None) -> None:
            bar.update(task, completed=step)
            if loss is not None and rate is not None:
                bar.update(task, figures=_figures(loss, rate))

        yield show


class _Lines:
    """A line whenever there is a loss; of what has none, one now and then."""

    def __init__(self, name: str, first: int, steps: int) -> None:
        self.name, self.first, self.steps = name, first, steps
        self.started = self.said = time.monotonic()
        self.trains = False

    def __call__(self, step: int, loss: float | None = None, rate: float | None = None) -> None:
        now = time.monotonic()
        if loss is not None and rate is not None:
            figures = f"  {_figures(loss, rate)}"
            self.trains = True
        elif self.trains or now - self.said < SILENCE:
            return
        else:
            figures = ""
        self.said = now
        left = (now - self.started) / (step - self.first) * (self.steps - step)
        log.info("%s  step %d/%d%s  %s left", self.name, step, self.steps, figures, duration(left))


def duration(seconds: float) -> str:
    """A length of time in the two units that matter: "2 h 05 min", "3 min 20 s"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"


def _figures(loss: float, rate: float) -> str:
    return f"loss {loss:.4f}  {rate:.1f} img/s"
