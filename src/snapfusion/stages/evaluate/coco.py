"""The paper's protocols (section 5): captions of MS-COCO and its real pictures, both brought by the user.

COCO 2017-5K is Table 2's; 2014-30K is Fig. 4's and 2014-6K its ablations'. Which captions and which real pictures the
paper took it does not say; here the captions are those of the lowest number, one a picture, in an order fixed by hash,
and the real pictures are all of the folder (or those of the captions alone). Both sides are made square at one size
before Inception sees them. All of it stands in the protocol's line.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from snapfusion.data.choice import number
from snapfusion.data.stream import on_white
from snapfusion.json_file import read_json
from snapfusion.metrics.clip_score import Clip
from snapfusion.metrics.features import Backbone, Images, Vectors, VectorStore, image_vectors
from snapfusion.stage_folder import hash_of_file
from snapfusion.stages.evaluate.exam import Exam, Request, look
from snapfusion.stages.evaluate.figures import Figure, clip_scores, distances

Reference = Literal["all", "prompted"]

COUNTS = {"coco-2017-5k": 5000, "coco-2014-30k": 30000, "coco-2014-6k": 6000, "captions": None}
"""How many captions are drawn; None for all that there are."""
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
BATCH = 16
FEWEST = 4  # real pictures: two halves of two make a floor


@dataclass(frozen=True)
class Caption:
    """A sentence, and the file name of the picture that it describes where that is known."""

    key: str
    text: str
    file: str | None


@dataclass(frozen=True)
class CaptionSet:
    """What the user brought, and how it is looked at."""

    captions: Path
    pictures: Path
    side: int = 256
    """Pixels to which drawn and real pictures are brought before Inception; CLIP sees drawn ones as they were drawn."""
    reference: Reference = "all"
    """Which real pictures: all of the folder, or those that the captions describe."""


# ---------------------------------------------------------------------------------------------------------------------
# Captions


def read_captions(file: Path) -> list[Caption]:
    """One caption for each picture of a `.json` as COCO has it, or every line of a `.csv` or `.txt`.

    A csv has a column `caption` and perhaps one `file_name`; a line of a txt is a caption, or a file name, a tab and a
    caption. Blank captions are passed over.

    Raises:
        ValueError: the file is none of these.
    """
    readers = {".json": _read_coco, ".csv": _read_csv, ".txt": _read_txt}
    if not file.is_file() or file.suffix not in readers:
        raise ValueError(f"got --captions {file}, expected a file .json (as COCO has it), .csv or .txt")
    try:
        captions = [caption for caption in readers[file.suffix](file) if caption.text]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"got --captions {file}, expected a table or lines in UTF-8 ({error})") from error
    if not captions:
        raise ValueError(f"got --captions {file} without a caption, expected some")
    return captions


def choose_captions(name: str, file: Path) -> tuple[list[Caption], int]:
    """The captions of a protocol, in an order fixed by hash, and how many there were to choose from.

    Raises:
        ValueError: there are too few.
    """
    captions = sorted(read_captions(file), key=lambda caption: number("captions", caption.key))
    count = COUNTS[name] or len(captions)
    if len(captions) < count:
        raise ValueError(
            f"got {len(captions)} captions in {file}, expected at least {count} for {name}; the protocol `captions` "
            "takes any number"
        )
    return captions[:count], len(captions)


def _read_coco(file: Path) -> Iterator[Caption]:
    record = read_json(file)
    try:
        names = {image["id"]: str(image["file_name"]) for image in record["images"]}
        first: dict[int, dict[str, object]] = {}
        for annotation in sorted(record["annotations"], key=lambda entry: entry["id"]):
            first.setdefault(annotation["image_id"], annotation)
        for place, annotation in sorted(first.items()):
            yield Caption(f"coco-{place}", str(annotation["caption"]).strip(), names[place])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected COCO's captions: images and annotations ({error!r})") from error


def _read_csv(file: Path) -> Iterator[Caption]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for place, row in enumerate(csv.DictReader(lines)):
            if "caption" not in row:
                raise ValueError(f"{file}: got columns {', '.join(map(str, row))}, expected one named caption")
            yield Caption(f"line-{place}", (row["caption"] or "").strip(), row.get("file_name") or None)


def _read_txt(file: Path) -> Iterator[Caption]:
    for place, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n")):
        name, tab, text = line.partition("\t")
        yield Caption(f"line-{place}", (text if tab else name).strip(), name if tab else None)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def square(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """The middle of a picture, as large as it goes, bicubic and antialiased to `[side, side, 3]`."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    middle = on_white(image).crop((left, top, left + edge, top + edge))
    return np.asarray(middle.resize((side, side), Image.Resampling.BICUBIC))


def read_squares(files: Sequence[Path], side: int) -> Iterator[Images]:
    """Real pictures in batches `[<= BATCH, side, side, 3]`."""
    for start in range(0, len(files), BATCH):
        yield np.stack([square(Image.open(file), side) for file in files[start : start + BATCH]])


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder, by name."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES) if folder.is_dir() else []
    if len(files) < FEWEST:
        raise ValueError(f"got --pictures {folder} with {len(files)} pictures, expected a folder of real pictures")
    return files


def own_pictures(captions: Sequence[Caption], folder: Path) -> list[Path] | None:
    """The real picture of each caption; None unless all of them are named and there."""
    files = [folder / Path(caption.file).name for caption in captions if caption.file is not None]
    return files if len(files) == len(captions) and all(file.is_file() for file in files) else None


# ---------------------------------------------------------------------------------------------------------------------
# The exam


@dataclass(frozen=True)
class Marking:
    """How the pictures of captions are marked."""

    asked: list[Caption]
    real: list[Path]
    """The pictures to compare with."""
    own: list[Path] | None
    """The real picture of each caption, where all are known."""
    side: int
    backbone: Backbone
    """Sees pictures of `side` pixels."""
    store: VectorStore
    clip: Clip | None

    def __call__(self, pictures: Iterable[Images]) -> dict[str, Figure]:
        """All figures of pictures of the first so many captions."""
        vectors, cosines = look(pictures, self.backbone, self.clip, [caption.text for caption in self.asked])
        half = np.arange(len(self.real)) % 2 == 0
        figures = distances(vectors, self._real_vectors, half, with_fid=True)
        if self.clip is not None and cosines is not None:
            real = self._real_cosines
            figures |= clip_scores(self.clip, cosines, None if real is None else real[: len(cosines)])
        return figures

    @cached_property
    def _real_vectors(self) -> Vectors:
        return image_vectors(self.backbone, read_squares(self.real, self.side), self.store)

    @cached_property
    def _real_cosines(self) -> NDArray[np.float32] | None:
        """Of the captions' own pictures, `[len(asked)]`."""
        if self.own is None or self.clip is None:
            return None
        prompts = [caption.text for caption in self.asked]
        _, cosines = look(read_squares(self.own, self.side), self.backbone, self.clip, prompts)
        return cosines


def caption_exam(name: str, found: CaptionSet, backbone: Backbone, store: VectorStore, clip: Clip | None) -> Exam:
    """One of `COUNTS` on the captions and pictures that the user brought.

    Raises:
        ValueError: `reference` is "prompted" and the captions' pictures are not known.
    """
    asked, available = choose_captions(name, found.captions)
    own, everything = own_pictures(asked, found.pictures), pictures_of(found.pictures)
    if found.reference == "prompted" and own is None:
        raise ValueError(f"got --reference prompted, expected captions that name pictures of {found.pictures}")
    real = own if found.reference == "prompted" and own is not None else everything

    def shown(first: int) -> list[NDArray[np.uint8]]:
        return [image for batch in read_squares((own or [])[:first], found.side) for image in batch]

    line = (
        f"{name}: {len(asked)} pictures, one for each of {len(asked)} captions of {available} in {found.captions.name} "
        f"(SHA-256 {hash_of_file(found.captions)[:12]}; one a picture, in an order fixed by hash), against "
        f"{len(real)} real ones ({found.reference}); both cut square in the middle and resized to {found.side} px, "
        "bicubic, antialiased, 8 bits; CLIP sees drawn pictures before that and real ones after it"
    )
    requests = [Request(caption.key, caption.text, number("seed", caption.key) % 2**32) for caption in asked]
    return Exam(
        name, line, requests, Marking(asked, real, own, found.side, _at(found.side, backbone), store, clip), shown
    )


def _at(side: int, backbone: Backbone) -> Backbone:
    """A backbone that sees every picture cut and resized as the real ones are."""
    return replace(
        backbone, embed=lambda images: backbone.embed(np.stack([square(Image.fromarray(i), side) for i in images]))
    )
