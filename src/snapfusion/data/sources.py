"""Where pictures with captions come from: shards of WebDataset, a plain folder, a dataset of Hugging Face.

A source is cut into parts, each of which is read from its beginning in one order: what `stream.py` deals out to
processes. Nothing is decoded here. What cannot be read is said in its place (`Broken`) and not raised.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "text", "caption", "prompt")
CHUNK = 1000  # files of a plain folder, or rows of a table, in a part
HUGGING_FACE = "hf:"


class Raw(NamedTuple):
    """A picture as its file has it, with its caption."""

    key: str
    image: bytes
    caption: str


class Broken(NamedTuple):
    """In place of a sample that cannot be read, or of the rest of a part."""

    reason: str


class Source(Protocol):
    """Parts of samples."""

    def __len__(self) -> int:
        """How many parts there are."""
        ...

    def read(self, part: int) -> Iterator[Raw | Broken]:
        """The samples of a part, in one order."""
        ...


def open_source(text: str) -> Source:
    """The source that is meant by `text`:

    - `shards/{00000..00099}.tar`, `shards/*.tar`, `pipe:COMMAND`, an address, or several of these with `::` between;
    - a folder: of shards, of pictures with `NAME.txt` beside them or a `metadata.jsonl`, or one that `datasets` saved;
    - `hf:NAME` or `hf:NAME:SPLIT`: a dataset of a hub, or a folder that `datasets.load_dataset` reads.

    A command after `pipe:` is run by the shell. Raises `ValueError` where nothing of that name is there.
    """
    if text.startswith(HUGGING_FACE):
        return HuggingFace.load(text.removeprefix(HUGGING_FACE))
    folder = Path(text)
    if not folder.is_dir():
        return Shards.of(text)
    if shards := sorted(chain(folder.glob("*.tar"), folder.glob("shards/*.tar"))):
        return Shards(tuple(map(str, shards)))
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return HuggingFace.from_disk(folder)
    return Folder.of(folder)


@dataclass(frozen=True)
class Shards:
    """Tars in the WebDataset layout: files of a sample side by side, of one name but for what follows its first dot."""

    addresses: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Shards":
        """Of patterns and addresses, as `webdataset` understands them."""
        from webdataset.shardlists import expand_urls

        addresses: list[str] = []
        for address in expand_urls(text):
            remote = re.match(r"[a-z]+:", address)
            found = [address] if remote else sorted(glob(address))
            if not found:
                raise ValueError(
                    f"got {address}, where there is no file, expected shards, a folder or {HUGGING_FACE}NAME"
                )
            addresses += found
        return cls(tuple(addresses))

    def __len__(self) -> int:
        return len(self.addresses)

    def read(self, part: int) -> Iterator[Raw | Broken]:
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys, tar_file_expander

        address = self.addresses[part]
        errors: list[str] = []

        def note(error: Exception) -> bool:
            errors.append(f"{type(error).__name__}: {error.args[0] if error.args else ''}")
            return True

        def noted() -> Iterator[Broken]:
            """What went wrong since the last sample, as one: an end that is missing shows itself several times."""
            if errors:
                yield Broken(f"{address}: {'; '.join(errors)}")
            errors.clear()

        try:
            with gopen(address) as stream:
                files = tar_file_expander([{"url": address, "stream": stream}], note)
                for sample in group_by_keys(files, handler=note):
                    yield _sample(f"{address}: {sample['__key__']}", sample)
                    yield from noted()
        except OSError as error:
            note(error)
        yield from noted()


@dataclass(frozen=True)
class Folder:
    """Pictures with a text file of the same name beside each, or with a `metadata.jsonl` of `file_name` and `text`."""

    folder: Path
    files: tuple[Path, ...]
    captions: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> "Folder":
        """Of all pictures below a folder, by name."""
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower().removeprefix(".") in IMAGES)
        if not files:
            raise ValueError(f"got {folder} without shards or pictures, expected .tar, {', '.join(IMAGES)}")
        return cls(folder, tuple(files), dict(_table(folder / "metadata.jsonl")))

    def __len__(self) -> int:
        return -(-len(self.files) // CHUNK)

    def read(self, part: int) -> Iterator[Raw | Broken]:
        for file in self.files[part * CHUNK : (part + 1) * CHUNK]:
            name = file.relative_to(self.folder).as_posix()
            text = file.with_suffix(".txt")
            try:
                caption = self.captions.get(name) or text.read_text(encoding="utf-8-sig")
                yield Raw(name, file.read_bytes(), caption.strip())
            except (OSError, UnicodeDecodeError) as error:
                yield Broken(f"{file}: {error}")


@dataclass(frozen=True)
class HuggingFace:
    """A dataset of Hugging Face's library: a table on disk, or one that streams."""

    dataset: Any
    image: str
    """Column of the pictures."""
    caption: str

    @classmethod
    def load(cls, name: str) -> "HuggingFace":
        """`NAME` or `NAME:SPLIT`, streamed."""
        from datasets import load_dataset

        name, _, split = name.partition(":")
        return cls.of(load_dataset(name, split=split or "train", streaming=True), name)

    @classmethod
    def from_disk(cls, folder: Path) -> "HuggingFace":
        """What `save_to_disk` wrote; of several splits the one for training."""
        from datasets import DatasetDict, load_from_disk

        loaded = load_from_disk(str(folder))
        return cls.of(loaded["train"] if isinstance(loaded, DatasetDict) else loaded, str(folder))

    @classmethod
    def of(cls, dataset: Any, name: str = "the dataset") -> "HuggingFace":
        """Of a `datasets.Dataset` or `datasets.IterableDataset`, whose columns say which is which."""
        from datasets import Image

        features = dataset.features or {}
        image = next((column for column, feature in features.items() if isinstance(feature, Image)), None)
        caption = next((column for column in CAPTIONS if column in features), None)
        if image is None or caption is None:
            expected = f"one of pictures, and one of {', '.join(CAPTIONS)}"
            raise ValueError(f"got {name} with columns {', '.join(features) or 'unknown'}, expected {expected}")
        return cls(dataset.cast_column(image, Image(decode=False)), image, caption)

    def __len__(self) -> int:
        if hasattr(self.dataset, "num_shards"):
            return self.dataset.num_shards
        return -(-len(self.dataset) // CHUNK)

    def read(self, part: int) -> Iterator[Raw | Broken]:
        for place, row in enumerate(self.dataset.shard(num_shards=len(self), index=part)):
            key, picture, caption = f"{part}-{place}", row[self.image], row[self.caption]
            try:
                data = picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes()
                yield Raw(key, data, caption.strip())
            except (OSError, TypeError, AttributeError) as error:  # no picture, or no caption
                yield Broken(f"{key}: {error}")


def _table(file: Path) -> Iterator[tuple[str, str]]:
    """Names and captions of a `metadata.jsonl`, if there is one."""
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n") if file.is_file() else (), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: expected a JSON object ({error})") from error
        if "file_name" in row and (caption := _caption(row)) is not None:
            yield row["file_name"], caption


def _sample(key: str, files: Mapping[str, Any]) -> Raw | Broken:
    """A sample of a shard, by the endings of its files."""
    image = next((files[ending] for ending in IMAGES if ending in files), None)
    try:
        caption = _caption({name: files[name].decode() for name in CAPTIONS if name in files})
        if caption is None and "json" in files:
            caption = _caption(json.loads(files["json"]))
    except ValueError as error:  # not UTF-8, or not JSON
        return Broken(f"{key}: {error}")
    if image is None or caption is None:
        got = ", ".join(sorted(name for name in files if not name.startswith("__")))
        return Broken(f"{key}: got {got or 'nothing'}, expected a picture and a caption")
    return Raw(key, image, caption.strip())


def _caption(fields: Mapping[str, Any]) -> str | None:
    return next((fields[name] for name in CAPTIONS if isinstance(fields.get(name), str)), None)
