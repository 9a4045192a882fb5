"""What a bundle says of itself: how it draws, how large its parts are, what was measured on it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from snapfusion.bundle import PARTS, Bundle, Manifest, sizes_of
from snapfusion.diffusion.guidance import guided_steps


def record(bundle: Bundle) -> dict[str, Any]:
    """All of it as JSON has it: the manifest but for its list of files, and in `bytes` the size of each folder."""
    sizes = sizes_of(bundle)
    return {
        "folder": str(bundle.folder),
        "hash": bundle.hash,
        **asdict(bundle.manifest),
        "size": bundle.image_size,
        "tokens": bundle.length,
        "latent": list(bundle.latent_shape),
        "bytes": {**sizes, "all": sum(sizes.values())},
    }


def describe(bundle: Bundle) -> str:
    """The same as plain text for people: aligned, in sections."""
    manifest, sizes = bundle.manifest, sizes_of(bundle)
    defaults, side, shift = manifest.defaults, bundle.image_size, bundle.schedule.timestep_shift
    steps = f"{defaults.steps} steps of {defaults.scheduler}" + (f", timestep shift {shift:g}" if shift != 1 else "")
    guidance = f"guidance {defaults.guidance:g}"
    guided = guided_steps(defaults.steps, defaults.guidance_stop, defaults.guidance)
    if 0 < guided < defaults.steps:
        guidance += f" in the first {guided} of them"
    about = [
        ("bundle", f"{manifest.name}  {bundle.hash[:12]}"),
        ("made by", f"snapfusion {manifest.snapfusion}, for {', '.join(manifest.runtimes)}"),
        ("draws", f"{side}x{side}, {steps}, {guidance}"),
        ("reads", f"{bundle.length} tokens of a prompt"),
        *((name, text) for name, text in manifest.licences.items()),
    ]
    parts = [(part, _weights(manifest, part), f"{sizes[part] / 1e6:>8.1f} MB") for part in PARTS]
    total = ("all files", "", f"{sum(sizes.values()) / 1e6:>8.1f} MB")
    sections = [about, [*parts, total], list(_rows(manifest.figures))]
    return "\n\n".join(_aligned(section) for section in sections if section)


def _weights(manifest: Manifest, part: str) -> str:
    """How a part's weights are stored; where there are several runtimes, for each."""
    stored = {runtime: weights.get(part, "?") for runtime, weights in manifest.runtimes.items()}
    if len(stored) == 1:
        return next(iter(stored.values()))
    return ", ".join(f"{runtime} {weights}" for runtime, weights in stored.items())


def _rows(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """A row for each figure, named by the way to it."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{above}{name} ")
        else:
            yield f"{above}{name}", f"{value:g}" if isinstance(value, float) else str(value)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows as columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
