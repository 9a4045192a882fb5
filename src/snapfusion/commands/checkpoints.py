"""Commands that take a checkpoint whole: made small, written in another form, measured."""

import math
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from snapfusion.commands.loader import Command, Loras
from snapfusion.processes import tell


def compress() -> Command:
    """Make a smaller, faster model of a checkpoint: every stage, to a bundle and a report."""
    from snapfusion import recipes
    from snapfusion.lora import parsed

    def command(
        checkpoint: Positional[Path | None] = None,
        *,
        recipe: recipes.Name,
        out: Path,
        data: Path | None = None,
        table: Path | None = None,
        max_seconds: float = math.inf,
        dry_run: bool = False,
        utilisation: float = 0.2,
        tflops: float | None = None,
        lora: Loras = (),
        changes: Annotated[recipes.Changes, OmitArgPrefixes],
    ) -> None:
        """Run a recipe: profile, evolve, distil steps and decoder, export, evaluate. To resume, run the same command.

        Args:
            checkpoint: A folder in diffusers' layout, a single .safetensors or a hub's name; --recipe tiny makes one.
            recipe: What is done, and how long.
            out: The run's folder. In the end it holds `bundle` and `report.html`.
            data: A set of `snapfusion data pairs`, or of `snapfusion data stickers`, which --recipe stickers builds by
                itself.
            table: Prices measured elsewhere, on a phone for one; by default this machine is measured.
            max_seconds: Stop cleanly after this long (exit status 75); the same command goes on.
            dry_run: Only say what each stage would take: operations, hours, memory, disk.
            utilisation: For --dry-run, the share of the device's speed that the networks reach.
            tflops: For --dry-run, that speed; by default this machine's is measured.
            lora: FILE or FILE:SCALE, merged before anything else. Can be given several times.
        """
        if dry_run:
            return print(recipes.dry_run(recipe, checkpoint, data, utilisation, tflops, changes))
        loras = parsed(lora)
        return tell(recipes.start(recipe, checkpoint, data, table, out, max_seconds, loras, changes).describe())

    return command


def convert() -> Command:
    """Write a checkpoint in another form: a folder or a single file, LoRAs merged."""
    from snapfusion.convert import Precision, convert
    from snapfusion.lora import parsed

    def command(
        checkpoint: Positional[Path], *, out: Path, lora: Loras = (), precision: Precision | None = None
    ) -> None:
        """Read a checkpoint as people have it, and write it as a folder in diffusers' layout or as a single file.

        Args:
            checkpoint: A folder in diffusers' layout, a single .safetensors or a hub's name.
            out: A new folder; or a new file in the original Stable Diffusion layout, named .safetensors.
            lora: FILE or FILE:SCALE, merged before anything else. Can be given several times.
            precision: How weights are stored; by default as they were.
        """
        for line in convert(checkpoint, out, parsed(lora), precision):
            print(line)

    return command


def profile() -> Command:
    """Measure what each piece of a checkpoint costs here."""
    from snapfusion.progress import log_to_terminal
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
        log_to_terminal()
        print(stage.run(config, checkpoint, out, table).describe())

    return command


def profile_sd15() -> Command:
    """Measure Stable Diffusion v1.5 here: the paper's Table 1."""
    from snapfusion.progress import log_to_terminal
    from snapfusion.stages.profile import stage
    from snapfusion.stages.profile.engines import Runtime

    def command(*, runtime: Runtime = "openvino", threads: int | None = None, out: Path | None = None) -> None:
        """The paper's Table 1 for this device, at Stable Diffusion v1.5's size, with random weights.

        Args:
            runtime: What runs the networks.
            threads: How many they run on; by default the runtime decides.
            out: Measure every block too, and write table, picture and result.json to this folder.
        """
        log_to_terminal()
        config = stage.Config(runtime=runtime, threads=threads)
        print(stage.run_sd15(config, out).describe() if out else stage.table1_sd15(config))

    return command
