"""What a protocol asks a model to draw and how the pictures are marked, whatever set the prompts come from."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from snapfusion.metrics.clip_score import Clip
from snapfusion.metrics.features import Backbone, Images, Vectors
from snapfusion.progress import progress
from snapfusion.stages.evaluate.figures import Figure
from snapfusion.stages.evaluate.model import Model


@dataclass(frozen=True)
class Request:
    """A picture that is asked for."""

    key: str
    """Also the name of its file."""
    prompt: str
    seed: int


@dataclass(frozen=True)
class Exam:
    """A protocol, its set of pictures at hand."""

    name: str
    line: str
    """What is held against what: sets, numbers, hashes, sizes, filters. How the model draws is not part of it."""
    requests: list[Request]
    mark: Callable[[Iterable[Images]], dict[str, Figure]]
    """Batches `[B, H, W, 3]` of pictures drawn for the first N requests, in their order, to figures."""
    real: Callable[[int], list[NDArray[np.uint8]]]
    """The real pictures `[H, W, 3]` of the first so many requests; none where no request has one."""


def draw_pictures(
    model: Model, requests: Sequence[Request], guidance: float, folder: Path, batch: int
) -> Iterator[Images]:
    """A picture for each request, in batches `[<= batch, H, W, 3]`; those in `folder` are not drawn again."""
    folder.mkdir(parents=True, exist_ok=True)
    with progress(f"{model.name}: drawing, guidance {guidance:g}", 0, len(requests)) as show:
        for start in range(0, len(requests), batch):
            part = requests[start : start + batch]
            missing = [request for request in part if not file_of(request.key, folder).exists()]
            prompts, seeds = [request.prompt for request in missing], [request.seed for request in missing]
            for request, image in zip(missing, model.draw(prompts, seeds, guidance), strict=True):
                save_picture(image, file_of(request.key, folder))
            yield np.stack([read_picture(file_of(request.key, folder)) for request in part])
            show(start + len(part))


def look(
    pictures: Iterable[Images], backbone: Backbone, clip: Clip | None, prompts: Sequence[str]
) -> tuple[Vectors, NDArray[np.float32] | None]:
    """Pictures of N prompts, seen once: vectors `[N, 2048]` and, with a CLIP, the cosines to their prompts `[N]`."""
    vectors: list[Vectors] = []
    cosines: list[NDArray[np.float32]] = []
    seen = 0
    for images in pictures:
        vectors.append(backbone.embed(images))
        if clip is not None:
            cosines.append(clip.cosines(list(images), prompts[seen : seen + len(images)]))
        seen += len(images)
    return np.concatenate(vectors), np.concatenate(cosines) if cosines else None


def file_of(key: str, folder: Path) -> Path:
    """Where the picture of a request is kept."""
    return folder / f"{key}.png"


def read_picture(file: Path) -> NDArray[np.uint8]:
    """A picture `[H, W, 3]`."""
    return np.asarray(Image.open(file).convert("RGB"))


def save_picture(image: NDArray[np.uint8], file: Path) -> None:
    """Write a picture `[H, W, 3]`, whole or not at all."""
    partial = file.with_suffix(".part")
    Image.fromarray(image).save(partial, "PNG")
    partial.replace(file)
