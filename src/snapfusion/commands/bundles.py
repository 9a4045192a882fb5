"""Commands around bundles and their pictures."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from snapfusion.commands.loader import Command, Loras


def generate() -> Command:
    """Draw pictures from a prompt."""
    from snapfusion.generate_command import generate

    return generate


def info() -> Command:
    """Say what a bundle is, how large, and what was measured on it."""
    from json import dumps

    from snapfusion.bundle import read_bundle
    from snapfusion.info import describe, record

    def command(bundle: Positional[Path | None] = None, *, json: bool = False) -> None:
        """Check a bundle and print what it says of itself: how it draws, sizes, licences, figures.

        Args:
            bundle: A bundle's folder; by default the embedded one.
            json: Print one JSON object and nothing else.
        """
        opened = read_bundle(bundle)
        print(dumps(record(opened), ensure_ascii=False) if json else describe(opened))

    return command


def export() -> Command:
    """Pack a checkpoint into a bundle."""
    from tempfile import TemporaryDirectory

    from snapfusion.convert import as_folder
    from snapfusion.lora import parsed
    from snapfusion.progress import log_to_terminal
    from snapfusion.stages.export import stage

    def command(
        checkpoint: Positional[Path],
        *,
        out: Path,
        config: Annotated[stage.Config, OmitArgPrefixes],
        decoder: Path | None = None,
        lora: Loras = (),
    ) -> None:
        """Pack a checkpoint into a bundle, and prove that it draws as torch does.

        Args:
            checkpoint: A folder in diffusers' layout, a single .safetensors or a hub's name.
            out: The bundle's folder.
            decoder: A checkpoint whose image decoder is packed in place of this one's, such as a distilled one.
            lora: FILE or FILE:SCALE, merged before anything else. Can be given several times.
        """
        log_to_terminal()
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
            folder = as_folder(checkpoint, parsed(lora), Path(work) / "checkpoint")
            print(stage.run(config, folder, out, decoder).describe())

    return command


def evaluate() -> Command:
    """Measure bundles or checkpoints against real pictures and each other."""
    from snapfusion.progress import log_to_terminal
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
        log_to_terminal()
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
