"""The bundle: what ships. A folder in diffusers' layout whose networks are files of one or more runtimes, sealed by
manifest.json.

    model_index.json   tokenizer/   scheduler/   text_encoder/   unet/   vae_decoder/   manifest.json

manifest.json lists every file with its size and SHA-256. A bundle is opened only if it is exactly what was sealed: no
file more, none less, none changed, none outside the folder, and none of a kind that could run. Whatever is wrong is one
`ValueError`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from snapfusion.diffusion.sampler import Scheduler
from snapfusion.diffusion.schedule import Schedule
from snapfusion.json_file import read_json, write_json
from snapfusion.runtimes.choice import PARTS, RUNTIMES, Part, Runtime, choose, load
from snapfusion.tokens import read_tokenizer

FORMAT = 2
MANIFEST = "manifest.json"
EMBEDDED = Path(__file__).parent / "bundles" / "stickers"
NEEDED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae_decoder/config.json",
)
# Names of plain data: no way up, no way out, nothing that some program would run.
PLAIN_PATH = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
PLAIN_FILE = re.compile(
    r"[^/]+\.(json|txt|safetensors)|openvino_\w+\.(xml|bin)|model\.(onnx(_data)?|pte|mlmodel)|[\w-]*weight\.bin|"
    r"LICENSE|NOTICE"
)


class Network(Protocol):
    """Arrays in by name, an array out: `input_ids` `[B, L]` int64 -> embedding `[B, L, D]`; `sample` `[B, C, h, w]`,
    `timestep` `[1]` int64, `encoder_hidden_states` `[B, L, D]` -> prediction; `latent_sample` -> image in -1..1."""

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Networks:
    """The three callables that draw."""

    text_encoder: Network
    unet: Network
    vae_decoder: Network


@dataclass(frozen=True)
class Defaults:
    """How the bundle draws unless told otherwise."""

    steps: int = 50
    guidance: float = 7.5
    scheduler: Scheduler = "ddim"
    guidance_stop: float = 1.0
    """Share of the steps that are guided, the first ones."""


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says, its list of files apart."""

    name: str
    snapfusion: str
    """The version that wrote it."""
    defaults: Defaults
    runtimes: Mapping[Runtime, Mapping[str, str]] = field(default_factory=dict)
    """Those that it holds files of, with how each part's weights are stored in them."""
    licences: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: parity with torch by runtime, and more once evaluated."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Hash of the checkpoint, and the export's settings."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked; its networks are not in memory yet."""

    folder: Path
    hash: str
    """SHA-256 of what manifest.json says but for its figures: it stands for every file, and holds no time measured."""
    manifest: Manifest
    wanted: Runtime | None
    """What is to draw; None for the best that is installed."""
    tokenizer: Tokenizer
    length: int
    """Tokens of a prompt."""
    schedule: Schedule
    latent_shape: tuple[int, int, int]
    """C, h, w."""
    image_size: int
    """Pixels of a side."""
    scaling_factor: float

    @property
    def runtime(self) -> Runtime:
        """What draws. Raises `ValueError` where none of what the bundle holds files of is installed."""
        return choose(self.manifest.runtimes, self.wanted)

    def open(self, part: Part, batch: int, threads: int | None = None, also: Sequence[int] = ()) -> Network:
        """Bring one network into memory, made ready for `batch` rows, and for as many as `also` says."""
        return load(self.runtime).open(self.folder / part, batch, threads, also)


def read_bundle(folder: Path | None = None, runtime: str | None = None) -> Bundle:
    """Check the bundle in `folder` (None: the embedded one) and read all but its networks.

    `runtime` None takes the best that is installed, of those that the bundle holds files of. Raises `ValueError` where
    one is asked for that cannot be had, or where the bundle is not what was sealed.
    """
    if folder is None and not EMBEDDED.is_dir():
        raise ValueError("got no bundle, and this installation embeds none; name a bundle's folder")
    folder = folder or EMBEDDED
    if not folder.is_dir():
        raise ValueError(f"got bundle {folder}, expected a folder with a {MANIFEST}")
    record = read_json(folder / MANIFEST)
    if (version := record.get("format")) not in (1, FORMAT):
        raise ValueError(
            f"{folder}: got bundle format {version!r}, expected 1 to {FORMAT}; update snapfusion or export again"
        )
    manifest = _manifest(record, folder)
    wanted = None if runtime is None else choose(manifest.runtimes, runtime)
    _check_files(folder, record.get("files"), needed_by(manifest.runtimes))
    try:
        return bundle_in(folder, manifest, wanted)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: got configs that do not make a bundle ({error!r}); export it again") from error


def bundle_in(folder: Path, manifest: Manifest, wanted: Runtime | None = None) -> Bundle:
    """What `folder` holds, unchecked, whether its networks are there yet or not: for who is still writing it."""
    tokenizer, length = read_tokenizer(folder / "tokenizer")
    unet, decoder = read_json(folder / "unet" / "config.json"), read_json(folder / "vae_decoder" / "config.json")
    size = int(unet["sample_size"])
    return Bundle(
        folder=folder,
        hash=_hash(read_json(folder / MANIFEST)) if (folder / MANIFEST).is_file() else "",
        manifest=manifest,
        wanted=wanted,
        tokenizer=tokenizer,
        length=length,
        schedule=Schedule.from_config(read_json(folder / "scheduler" / "scheduler_config.json")),
        latent_shape=(unet["in_channels"], size, size),
        image_size=size * decoder.get("patch_size", 1) * 2 ** (len(decoder["block_out_channels"]) - 1),
        scaling_factor=float(decoder["scaling_factor"]),
    )


def seal_bundle(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json for all files in `folder`: whatever changes after this is refused."""
    files = {name: _fingerprint(folder / name) for name in _names(folder)}
    write_json(folder / MANIFEST, {"format": FORMAT, **asdict(manifest), "files": files})


def needed_by(runtimes: Iterable[Runtime]) -> set[str]:
    """Names of the files that a bundle for these runtimes must hold."""
    networks = (f"{part}/{file}" for name in runtimes for part in PARTS for file in RUNTIMES[name].files[part])
    return {*NEEDED, *networks}


def sizes_of(bundle: Bundle) -> dict[str, int]:
    """Bytes of each folder of a bundle, and of the files that are in none as "."."""
    sizes: dict[str, int] = {}
    for name in [*_names(bundle.folder), MANIFEST]:
        folder = name.rpartition("/")[0] or "."
        sizes[folder] = sizes.get(folder, 0) + (bundle.folder / name).stat().st_size
    return sizes


def _manifest(record: Mapping[str, Any], folder: Path) -> Manifest:
    try:
        if record["format"] == 1:  # one runtime each
            record = {**record, "runtimes": {record["runtime"]: record["weights"]}}
        values = {entry.name: record[entry.name] for entry in fields(Manifest)}
        stored = {name: dict(weights) for name, weights in values["runtimes"].items()}
        manifest = Manifest(**{**values, "defaults": Defaults(**values["defaults"]), "runtimes": stored})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST}: got no bundle's manifest ({error}); export the bundle again") from error
    strange = {*manifest.runtimes} - {*RUNTIMES}
    if strange or not manifest.runtimes:
        got = ", ".join(sorted(strange)) or "none"
        raise ValueError(f"{folder}: got runtime {got}, expected some of {', '.join(RUNTIMES)}; update snapfusion")
    return manifest


def _check_files(folder: Path, listed: Any, needed: set[str]) -> None:
    """Refuse whatever differs from the list in the manifest, or lacks what is needed."""
    if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
        raise ValueError(f"{folder / MANIFEST}: got no list of files; export the bundle again")
    for name in listed:
        if not PLAIN_PATH.fullmatch(name) or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}: got path {name!r}, expected one inside the bundle; do not use this bundle")
        if not PLAIN_FILE.fullmatch(name.rpartition("/")[2]):
            raise ValueError(
                f"{folder}: got file {name!r}, expected only data (JSON, text, networks); do not use this bundle"
            )
    if missing := sorted((needed | {*listed}) - {*_names(folder)} | needed - {*listed}):
        raise ValueError(f"{folder}: {missing[0]} is missing; fetch or export the bundle again")
    if extra := sorted({*_names(folder)} - {*listed}):
        raise ValueError(f"{folder}: got {extra[0]!r}, which {MANIFEST} does not list; delete it")
    for name, expected in listed.items():
        size = (folder / name).stat().st_size
        if size != expected.get("bytes"):
            raise ValueError(
                f"{folder}: {name}: got {size} bytes, expected {expected.get('bytes')}; fetch the bundle again"
            )
        if _fingerprint(folder / name) != expected:
            raise ValueError(f"{folder}: {name}: got other content than was sealed (SHA-256); fetch the bundle again")


def _hash(record: Mapping[str, Any]) -> str:
    said = {name: value for name, value in record.items() if name != "figures"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _names(folder: Path) -> list[str]:
    """Every file in `folder` but the manifest, links to folders too: whatever is not a true folder."""
    entries = [entry for entry in folder.rglob("*") if entry.is_symlink() or not entry.is_dir()]
    return sorted(name for entry in entries if (name := entry.relative_to(folder).as_posix()) != MANIFEST)


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
