"""Commands that train, and those that make what is trained from."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from snapfusion.commands.loader import Command
from snapfusion.processes import tell


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
        tell(stage.start(config, data, out, init).describe())

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
            data: A set of `snapfusion data pairs` or `snapfusion data stickers`.
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
            tell(stage.run(config, checkpoint, table, data, out).describe())
        else:
            raise ValueError("got too little, expected a checkpoint, --data and --out, or --price-only and --scores")

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
            data: A set of `snapfusion data pairs` or `snapfusion data stickers`.
            out: The run's folder; the checkpoint is written to its `checkpoint`.
            cache: Where latents and embeddings are kept; by default `cache` beside the run's folder.
        """
        log_to_terminal()
        tell(stage.run(config, student, teacher, data, out, cache).describe())

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
            data: A set of `snapfusion data pairs` or `snapfusion data stickers`.
            out: The run's folder; the checkpoint is written to its `checkpoint`.
            cache: Where latents and embeddings are kept; by default `cache` beside the run's folder.
        """
        log_to_terminal()
        tell(to_velocity.run(config, checkpoint, data, out, cache).describe())

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
            prompts: A text file, one prompt a line, or a set of `snapfusion data pairs` or `stickers`.
            out: The stage's folder; the new checkpoint is its `checkpoint`.
            latents_folder: Where latents are kept, for a second decoder to read; by default in `out`.
        """
        log_to_terminal()
        tell(stage.run(config, checkpoint, prompts, out, latents_folder).describe())

    return command
