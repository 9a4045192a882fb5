"""The command line: words to a function, its parameters to flags, a person's mistake to one line and exit status 2."""

import errno
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from itertools import dropwhile, takewhile

import tyro
from tyro.conf import FlagCreatePairsOff

from snapfusion import __version__
from snapfusion.commands import COMMANDS, Command
from snapfusion.stage_folder import PausedError

DRAWING = re.compile(r"\x1b\[[0-9;]*m|[╭╮╰╯│]")  # what tyro draws around a message
PAUSED = 75  # the exit status of what is to be run again: EX_TEMPFAIL of sysexits.h
RULE = re.compile(r"\s*[─-]{3,}\s*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. `arguments` None takes the process's own."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "snapfusion":
            raise
        return _fail(f"needs {error.name}, which is not installed: in a clone: pip install '.[compress]'")
    except PausedError as pause:
        return _fail(str(pause), PAUSED)
    except OSError as error:
        advice = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        return _fail(f"{error}{advice}")
    except ValueError as error:
        return _fail(str(error))
    return 0


def _fail(message: str, status: int = 2) -> int:
    print("snapfusion:", *message.split(), file=sys.stderr)
    return status


def _run(arguments: list[str]) -> None:
    """Find the command that the first words name and give it the rest."""
    for count in (2, 1):
        if (words := " ".join(arguments[:count])) in COMMANDS:
            bound = _parse(COMMANDS[words](), f"snapfusion {words}", arguments[count:])
            return bound()
    words = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    known = [name for name in COMMANDS if f"{name} ".startswith(f"{words} ".lstrip())]
    if "--version" in arguments:
        print(f"snapfusion {__version__}")
    elif known and {"-h", "--help"} & {*arguments}:
        for name in known:
            print(f"snapfusion {name:<16} {COMMANDS[name].__doc__}")
    else:
        raise ValueError(f"got {words or 'no command'}, expected one of: {', '.join(known or COMMANDS)}")
    return None


def _parse(command: Command, program: str, arguments: list[str]) -> Callable[[], None]:
    """The call that `arguments` ask for. tyro draws a box around a mistake; ours is one line."""

    @functools.wraps(command)
    def bind(*values: object, **flags: object) -> Callable[[], None]:
        return functools.partial(command, *values, **flags)

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(bind, prog=program, args=arguments, config=(FlagCreatePairsOff,))
    except SystemExit as end:
        if end.code:
            raise ValueError(f"{_sentence(said.getvalue())} ({program} --help)") from None
        return lambda: None  # it was asked for help, and gave it


def _sentence(box: str) -> str:
    """What tyro says between the title and the first rule, whether it draws with lines or, where it may not, dashes."""
    lines = [line.strip() for line in DRAWING.sub("", box).splitlines()[1:]]
    said = list(takewhile(lambda line: not RULE.fullmatch(line), dropwhile(RULE.fullmatch, lines)))
    sentence = " ".join(" ".join(said).split()).removeprefix("Error parsing ")
    words = re.fullmatch(r"Unrecognized options: ([^-].*)", sentence)
    return f"{sentence}; put words that belong together in quotes" if words else sentence
