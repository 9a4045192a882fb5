"""The processes that `accelerate launch` or torchrun started for one run: which of them this is, and how they meet."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

Result = TypeVar("Result")
PATIENCE = timedelta(days=1)

_alone = False


def rank() -> int:
    """This process's number; 0 is the main one, whose files count."""
    return _number("RANK", 0) if _number("WORLD_SIZE", 1) > 1 else 0


def count() -> int:
    """How many there are, or go on together."""
    return 1 if _alone else _number("WORLD_SIZE", 1)


def tell(text: str) -> None:
    """Print what came of a run that all of them share, once."""
    if rank() == 0:
        print(text)


def go_on_alone() -> None:
    """From here on this process, the main one, meets nobody: the others have ended."""
    global _alone
    assert rank() == 0
    _alone = True


def on_cpu() -> bool:
    """Whether training is for the CPU: there is no GPU of CUDA's, or `accelerate launch --cpu` said so."""
    import torch  # what draws pictures has none
    from accelerate.utils import parse_flag_from_env

    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()


def meet() -> None:
    """Wait until all of them are here."""
    if count() > 1:
        from accelerate.state import PartialState  # what draws pictures has none, and is one process

        # Begun as an `Accelerator` begins it, and with more patience than the ten minutes that a GPU's process has:
        # the main one measures a device, or builds a set, while the others wait.
        PartialState(cpu=on_cpu(), timeout=PATIENCE).wait_for_everyone()


def main_first(work: Callable[[], Result]) -> Result:
    """What `work` returns, done by the main process while the others wait; they then find it done."""
    if rank() == 0:
        result = work()
        meet()
        return result
    meet()
    return work()


def from_main(work: Callable[[], Result]) -> Result:
    """What `work` returns in the main process, in all of them: measured once, so that none decides otherwise."""
    if count() == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    (value,) = broadcast_object_list([work() if rank() == 0 else None])
    return cast(Result, value)


def _number(name: str, default: int) -> int:
    """A number that a launcher leaves in the environment; a job's own variable of that name may be none."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
