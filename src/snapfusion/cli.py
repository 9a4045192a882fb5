"""The command line: words to a function, its parameters to flags, a person's mistake to one line and exit status 2.

`COMMANDS` maps the words to a loader, which imports what the command needs and no more and returns the function: so
`generate` starts in a blink, and a command that trains may need an extra.
"""

import errno
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from snapfusion import __version__
from snapfusion.stage_folder import PausedError

Command = Callable[..., None]

DRAWING = re.compile(r"\x1b\[[0-9;]*m|[╭╮╰╯│]")  # what tyro draws around a message
PAUSED = 75  # the exit status of what is to be run again: EX_TEMPFAIL of sysexits.h
RULE = re.compile(r"^\s*─{3,}\s*$", re.MULTILINE)


def generate() -> Command:
    """Draw pictures from a prompt."""
    from snapfusion.generate_command import generate

    return generate


def profile() -> Command:
    """Measure what each piece of a checkpoint costs here."""
    from snapfusion.stages.profile import stage

    def command(
        checkpoint: Positional[Path],
        *,
        out: Path,
        config: Annotated[stage.Config, OmitArgPrefixes],
        table: Path | None = None,
    ) -> None:
        """Measure every block of a checkpoint's UNet on this device: the table that evolving goes by, and Fig. 2.

        Args:
            checkpoint: A folder in diffusers' layout.
            out: The folder of the table, the picture and result.json.
            table: Prices measured elsewhere, on a phone for one: checked and taken instead.
        """
        print(stage.run(config, checkpoint, out, table).describe())

    return command


def profile_sd15() -> Command:
    """Measure Stable Diffusion v1.5 here: the paper's Table 1."""
    from snapfusion.stages.profile import stage
    from snapfusion.stages.profile.engines import Runtime

    def command(*, runtime: Runtime = "openvino", threads: int | None = None, json: Path | None = None) -> None:
        """The paper's Table 1 for this device, at Stable Diffusion v1.5's size, with random weights.

        Args:
            runtime: What runs the networks.
            threads: How many they run on; by default the runtime decides.
            json: A file for the figures.
        """
        print(stage.sd15(stage.Config(runtime=runtime, threads=threads), json))

    return command


def export() -> Command:
    """Pack a checkpoint into a bundle."""
    from snapfusion.stages.export import stage

    def command(checkpoint: Positional[Path], *, out: Path, config: Annotated[stage.Config, OmitArgPrefixes]) -> None:
        """Pack a checkpoint into a bundle, and prove that it draws as torch does.

        Args:
            checkpoint: A folder in diffusers' layout.
            out: The bundle's folder.
        """
        print(stage.run(config, checkpoint, out).describe())

    return command


def data_stickers() -> Command:
    """Build the sticker set: pictures, captions, splits."""
    from snapfusion.data.stickers import build

    def command(*, out: Path, size: int = 256, cache: Path | None = None) -> None:
        """Fetch the pinned npm packages and write the sticker set as WebDataset shards with an index.

        Args:
            out: The set's folder.
            size: Side of the pictures, pixels.
            cache: Where the packages are kept; by default beside the set.
        """
        print(build(out, size, cache))

    return command


def train_stickers() -> Command:
    """Train the stickers base."""
    from snapfusion.stages.train import stage

    def command(
        *,
        out: Path,
        config: Annotated[stage.Config, OmitArgPrefixes],
        data: Path | None = None,
        init: Path | None = None,
    ) -> None:
        """Train the stickers base: autoencoder, then UNet. To resume, run the same command.

        Args:
            out: The run's folder; the checkpoint is written to its `checkpoint`.
            data: A built sticker set; by default it is built in the run's folder.
            init: A checkpoint to train on from; its autoencoder is kept unless --autoencoder says otherwise.
        """
        print(stage.start(config, data, out, init).describe())

    return command


def evolve() -> Command:
    """Evolve a smaller UNet under a budget."""
    from snapfusion.progress import log_to_terminal
    from snapfusion.stages.evolve import stage

    def command(
        checkpoint: Positional[Path],
        *,
        table: Path,
        data: Path,
        out: Path,
        config: Annotated[stage.Config, OmitArgPrefixes],
    ) -> None:
        """Drop a UNet's least valuable blocks and copy its most valuable ones until it meets each budget.

        Args:
            checkpoint: A folder in diffusers' layout.
            table: What each piece of its UNet costs on the device: `snapfusion profile` writes it.
            data: A built sticker set.
            out: The folder of the checkpoints and the history. The same command goes on where it was stopped.
        """
        log_to_terminal()
        print(stage.run(config, checkpoint, table, data, out).describe())

    return command


def evaluate() -> Command:
    """Measure bundles or checkpoints against real pictures and each other."""
    from snapfusion.stages.evaluate import stage

    def command(
        models: Positional[tuple[Path, ...]],
        *,
        out: Path,
        sources: Annotated[stage.Sources, OmitArgPrefixes],
        config: Annotated[stage.Config, OmitArgPrefixes],
    ) -> None:
        """Draw what prompts ask for, judge it, count what it costs and time it: report.html, and pairs.html.

        Args:
            models: Bundles or checkpoints, the base first.
            out: The folder of the report and of every model's pictures and figures.
        """
        print(stage.run(config, models, sources, out).describe())

    return command


def preferences() -> Command:
    """Count what people chose on a report's page of blind pairs."""
    from snapfusion.stages.evaluate import pairs

    def command(answers: Positional[tuple[Path, ...]], *, report: Path) -> None:
        """Say how often people preferred each model to the base.

        Args:
            answers: Files that the page of pairs saved.
            report: The folder of the evaluation that the page belongs to.
        """
        for preference in pairs.preferences(answers, report / "report.json"):
            print(preference.describe())

    return command


COMMANDS: dict[str, Callable[[], Command]] = {
    "generate": generate,
    "data stickers": data_stickers,
    "train stickers": train_stickers,
    "profile": profile,
    "profile sd15": profile_sd15,
    "export": export,
    "evolve": evolve,
    "evaluate": evaluate,
    "preferences": preferences,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. `arguments` None takes the process's own."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "snapfusion":
            raise
        return _fail(f"needs {error.name}, which is not installed: pip install 'snapfusion[compress]'")
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
    """What tyro says inside its box, without the title above and the hints below a rule."""
    inside = DRAWING.sub("", box).split("\n", 1)[-1]
    return " ".join(RULE.split(inside)[0].split()).removeprefix("Error parsing ")
