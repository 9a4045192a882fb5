"""The processes that `accelerate launch` or torchrun started for one run: which of them this is, and how they meet."""

import os
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def rank() -> int:
    """This process's number; 0 is the main one, whose files count."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet() -> None:
    """Wait until all of them are here."""
    if count() > 1:
        from accelerate.state import PartialState  # what draws pictures has none, and is one process
        from accelerate.utils import parse_flag_from_env

        PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).wait_for_everyone()  # as an `Accelerator` begins


def main_first(work: Callable[[], Result]) -> Result:
    """What `work` returns, done by the main process while the others wait; they then find it done."""
    if rank() == 0:
        result = work()
        meet()
        return result
    meet()
    return work()
