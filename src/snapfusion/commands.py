"""What a person can ask for: the words of the command line, and the function that each of them means.

`COMMANDS` maps the words to a loader, which imports what the command needs and no more and returns the function: so
`generate` starts in a blink, and a command that trains may need an extra.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

Command = Callable[..., None]
Loras = UseAppendAction[tuple[str, ...]]


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
    ) -> None:
        """Run a recipe: profile, evolve, distil steps and decoder, export, evaluate. To resume, run the same command.

        Args:
            checkpoint: A folder in diffusers' layout, a single .safetensors or a hub's name; --recipe tiny makes one.
            recipe: What is done, and how long.
            out: The run's folder. In the end it holds `bundle` and `report.html`.
            data: A built sticker set; by default it is built in the run's folder.
            table: Prices measured elsewhere, on a phone for one; by default this machine is measured.
            max_seconds: Stop cleanly after this long (exit status 75); the same command goes on.
            dry_run: Only say what each stage would take: operations, hours, memory, disk.
            utilisation: For --dry-run, the share of the device's speed that the networks reach.
            tflops: For --dry-run, that speed; by default this machine's is measured.
            lora: FILE or FILE:SCALE, merged before anything else. Can be given several times.
        """
        if dry_run:
            return print(recipes.dry_run(recipe, checkpoint, data, utilisation, tflops))
        return print(recipes.start(recipe, checkpoint, data, table, out, max_seconds, parsed(lora)).describe())

    return command


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

    def command(*, runtime: Runtime = "openvino", threads: int | None = None, out: Path | None = None) -> None:
        """The paper's Table 1 for this device, at Stable Diffusion v1.5's size, with random weights.

        Args:
            runtime: What runs the networks.
            threads: How many they run on; by default the runtime decides.
            out: Measure every block too, and write table, picture and result.json to this folder.
        """
        config = stage.Config(runtime=runtime, threads=threads)
        print(stage.run_sd15(config, out).describe() if out else stage.table1_sd15(config))

    return command


def export() -> Command:
    """Pack a checkpoint into a bundle."""
    from tempfile import TemporaryDirectory

    from snapfusion.convert import as_folder
    from snapfusion.lora import parsed
    from snapfusion.stages.export import stage

    def command(
        checkpoint: Positional[Path],
        *,
        out: Path,
        config: Annotated[stage.Config, OmitArgPrefixes],
        lora: Loras = (),
    ) -> None:
        """Pack a checkpoint into a bundle, and prove that it draws as torch does.

        Args:
            checkpoint: A folder in diffusers' layout, a single .safetensors or a hub's name.
            out: The bundle's folder.
            lora: FILE or FILE:SCALE, merged before anything else. Can be given several times.
        """
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
            print(stage.run(config, as_folder(checkpoint, parsed(lora), Path(work) / "checkpoint"), out).describe())

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


def data_pairs() -> Command:
    """Make a set of your own captioned pictures."""
    from snapfusion.data.collect import Config, collect

    def command(source: Positional[str], *, out: Path, config: Annotated[Config, OmitArgPrefixes]) -> None:
        """Read captioned pictures and write them as a set that the other commands take for --data.

        Args:
            source: WebDataset shards (a pattern, an address, pipe:COMMAND), a folder, or hf:NAME.
            out: The set's folder.
        """
        print(collect(source, out, config))

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
    from snapfusion.json_file import write_json
    from snapfusion.progress import log_to_terminal
    from snapfusion.stages.evolve import price_only as search_alone
    from snapfusion.stages.evolve import stage
    from snapfusion.stages.evolve.member import ARCHITECTURE
    from snapfusion.table import load_table

    def command(
        checkpoint: Positional[Path | None] = None,
        *,
        table: Path,
        data: Path | None = None,
        out: Path | None = None,
        price_only: search_alone.Name | None = None,
        scores: Path | None = None,
        config: Annotated[stage.Config, OmitArgPrefixes],
    ) -> None:
        """Drop a UNet's least valuable blocks and copy its most valuable ones until it meets each budget.

        Args:
            checkpoint: A folder in diffusers' layout.
            table: What each piece of its UNet costs on the device: `snapfusion profile` writes it.
            data: A built sticker set.
            out: The folder of the checkpoints and the history. The same command goes on where it was stopped.
            price_only: Train nothing: search this architecture with --scores, and print what would stay; with --out,
                also write it as BUDGETms/architecture.json.
            scores: An evolution's rounds/00/round.json, whose positions stand in for those of --price-only.
        """
        if price_only is not None and scores is not None:
            for budget in search_alone.budgets(config):
                answer = search_alone.search(price_only, budget, load_table(table), scores, config.limits)
                print(answer.describe())
                if out is not None:
                    write_json(out / f"{budget:g}ms" / ARCHITECTURE, answer.after.to_dict())
        elif checkpoint is not None and data is not None and out is not None:
            log_to_terminal()
            print(stage.run(config, checkpoint, table, data, out).describe())
        else:
            raise ValueError("expected a checkpoint, --data and --out, or --price-only and --scores")

    return command


def distill_steps() -> Command:
    """Teach a UNet to draw in half of its teacher's steps."""
    from snapfusion.progress import log_to_terminal
    from snapfusion.stages.distill_steps import stage

    def command(
        student: Positional[Path],
        *,
        teacher: Path,
        data: Path,
        out: Path,
        config: Annotated[stage.Config, OmitArgPrefixes],
        cache: Path | None = None,
    ) -> None:
        """Distil a teacher's steps into half as many of a student's, guidance kept. To resume, run the same command.

        Args:
            student: The checkpoint to start from; its UNet may be another than the teacher's.
            teacher: A checkpoint of the same text encoder and latents, undistilled or distilled for twice the steps.
            data: A built sticker set.
            out: The run's folder; the checkpoint is written to its `checkpoint`.
            cache: Where latents and embeddings are kept; by default `cache` beside the run's folder.
        """
        log_to_terminal()
        print(stage.run(config, student, teacher, data, out, cache).describe())

    return command


def distill_velocity() -> Command:
    """Turn a checkpoint that predicts noise to velocity."""
    from snapfusion.progress import log_to_terminal
    from snapfusion.stages.distill_steps import to_velocity
    from snapfusion.stages.distill_steps.config import VelocityConfig

    def command(
        checkpoint: Positional[Path],
        *,
        data: Path,
        out: Path,
        config: Annotated[VelocityConfig, OmitArgPrefixes],
        cache: Path | None = None,
    ) -> None:
        """Train a checkpoint from noise to velocity prediction, and say how far its pictures moved.

        Args:
            checkpoint: A folder in diffusers' layout, such as Stable Diffusion's.
            data: A built sticker set.
            out: The run's folder; the checkpoint is written to its `checkpoint`.
            cache: Where latents and embeddings are kept; by default `cache` beside the run's folder.
        """
        log_to_terminal()
        print(to_velocity.run(config, checkpoint, data, out, cache).describe())

    return command


def distill_decoder() -> Command:
    """Give a checkpoint an image decoder of a quarter of the size."""
    from snapfusion.progress import log_to_terminal
    from snapfusion.stages.distill_decoder import stage

    def command(
        checkpoint: Positional[Path],
        *,
        prompts: Path,
        out: Path,
        config: Annotated[stage.Config, OmitArgPrefixes],
        latents_folder: Path | None = None,
    ) -> None:
        """Halve the decoder's channels; train it to draw as before what prompts give. To resume, run the same command.

        Args:
            checkpoint: A folder in diffusers' layout.
            prompts: A text file, one prompt a line, or a built sticker set.
            out: The stage's folder; the new checkpoint is its `checkpoint`.
            latents_folder: Where latents are kept, for a second decoder to read; by default in `out`.
        """
        log_to_terminal()
        print(stage.run(config, checkpoint, prompts, out, latents_folder).describe())

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
    "info": info,
    "data stickers": data_stickers,
    "data pairs": data_pairs,
    "train stickers": train_stickers,
    "compress": compress,
    "convert": convert,
    "profile": profile,
    "profile sd15": profile_sd15,
    "distill steps": distill_steps,
    "distill velocity": distill_velocity,
    "distill decoder": distill_decoder,
    "export": export,
    "evolve": evolve,
    "evaluate": evaluate,
    "preferences": preferences,
}
