"""What a person can ask for: the words of the command line, and the function that each of them means.

`COMMANDS` maps the words to a loader, which imports what the command needs and no more and returns the function: so
`generate` starts in a blink, and a command that trains may need an extra.
"""

from snapfusion.commands import bundles, checkpoints, training
from snapfusion.commands.loader import Command, Loader

__all__ = ["COMMANDS", "Command"]

COMMANDS: dict[str, Loader] = {
    "generate": bundles.generate,
    "info": bundles.info,
    "data stickers": training.data_stickers,
    "data pairs": training.data_pairs,
    "train stickers": training.train_stickers,
    "compress": checkpoints.compress,
    "convert": checkpoints.convert,
    "profile": checkpoints.profile,
    "profile sd15": checkpoints.profile_sd15,
    "distill steps": training.distill_steps,
    "distill velocity": training.distill_velocity,
    "distill decoder": training.distill_decoder,
    "export": bundles.export,
    "evolve": training.evolve,
    "evaluate": bundles.evaluate,
    "preferences": bundles.preferences,
}
