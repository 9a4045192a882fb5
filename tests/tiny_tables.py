"""A table without a device: milliseconds that nobody measured, for what only adds them up."""

from snapfusion.model.architecture import Architecture
from snapfusion.table import Entry, Table, pieces

MILLISECONDS = {"attentions": 5.0, "resnets": 2.0, "downsamplers": 1.0, "upsamplers": 1.0, "rest": 0.25}
"""By the kind of a piece at level 0, half of it at each level below; what is not named takes 0.5."""


def tiny_table(architecture: Architecture, batch: int = 1) -> Table:
    """Prices for `architecture`, and for all that removing and copying its blocks can make of it but its last level."""
    entries = []
    for number, (name, level) in enumerate(dict.fromkeys(pieces(architecture))):
        kind = name.split(".")[-2] if "." in name else name
        milliseconds = batch * MILLISECONDS.get(kind, 0.5) / 2**level
        entries.append(Entry(name, level, milliseconds, 100 + number, 2 * (100 + number), 1000 * (1 + number)))
    return Table("nowhere", "none", "f32", 1, batch, 16, architecture.widths, tuple(entries))
