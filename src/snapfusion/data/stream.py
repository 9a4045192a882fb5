"""Pictures with captions, streamed: shuffled, dealt out to processes, and taken up again in the middle of an epoch.

The order depends on (seed, epoch, part) alone. Parts of a source (`sources.py`) are shuffled, and samples within
windows of a part; so to go on is to read again at most the part that was being read.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from snapfusion.data.sources import Broken, Raw, Source


@dataclass(frozen=True)
class Captioned:
    """A picture and what it shows."""

    key: str
    image: NDArray[np.uint8]  # [H, W, 3]
    caption: str


@dataclass
class Position:
    """Where a stream is: how many parts of this rank's share of an epoch are done, and samples of the next."""

    epoch: int = 0
    part: int = 0
    sample: int = 0
    corrupt: int = 0
    """Samples that were skipped so far, in all epochs."""


@dataclass(frozen=True)
class Config:
    """How a source is streamed."""

    seed: int = 0
    window: int = 1000
    """Samples that are shuffled together; they are in memory, undecoded."""
    corrupt: int = 100
    """How many samples may be broken before it is an error."""


class PairStream:
    """The samples of one process, epoch after epoch, without end.

    Every process of `world` gets other parts; where there are fewer parts than processes, it gets other samples of
    every part. Shares need not be equal in size: count batches, not epochs.
    """

    def __init__(self, source: Source, config: Config = Config(), rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"got rank {rank} of {world} processes, expected 0 to {world - 1}")
        if config.window < 1 or config.corrupt < 0 or not len(source):
            raise ValueError(
                f"got {len(source)} parts and {config}, expected some, a window of 1 or more, corrupt 0 or more"
            )
        self.source, self.config, self.rank, self.world = source, config, rank, world
        self.position = Position()
        self.broken = ""
        """Why the last broken sample was."""

    def state(self) -> dict[str, int]:
        """Where the stream is, for JSON: behind the last sample that it gave."""
        return asdict(self.position)

    def resume(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken, in a stream of the same source, config, rank and world."""
        self.position = Position(**state)

    def __iter__(self) -> Iterator[Captioned]:
        """Raises `ValueError` where more samples than `config.corrupt` are broken, or an epoch has none that is not."""
        while True:
            given = self.position.part > 0 or self.position.sample > 0
            for sample in self.epoch():
                given = True
                yield sample
            if not given:
                raise ValueError("got an epoch without a single sample, expected pictures with captions")

    def epoch(self) -> Iterator[Captioned]:
        """What is left of this epoch; the next call begins the next one."""
        position = self.position
        parts = np.random.default_rng((self.config.seed, position.epoch)).permutation(len(self.source))
        whole = len(parts) >= self.world
        share = parts[self.rank :: self.world] if whole else parts
        for place, part in enumerate(share[position.part :], position.part):
            samples = self.source.read(int(part))
            if not whole:  # another rank begins each part, or the last ones would get nothing of small parts
                samples = islice(samples, (self.rank - place) % self.world, None, self.world)
            for raw in self._shuffled(samples, int(part), position.sample):
                position.sample += 1
                if (sample := self._decoded(raw)) is not None:
                    yield sample
            position.part, position.sample = position.part + 1, 0
        self.position = Position(position.epoch + 1, corrupt=position.corrupt)

    def _shuffled(self, samples: Iterator[Raw | Broken], part: int, done: int) -> Iterator[Raw | Broken]:
        """A part in its order of this epoch, from sample `done` on."""
        number = 0
        while window := list(islice(samples, self.config.window)):
            order = np.random.default_rng((self.config.seed, self.position.epoch, part, number)).permutation(
                len(window)
            )
            yield from (window[place] for place in order[max(0, done - number * self.config.window) :])
            number += 1

    def _decoded(self, raw: Raw | Broken) -> Captioned | None:
        """The sample, or None where it is broken, which is counted."""
        if isinstance(raw, Raw) and not raw.caption:
            raw = Broken(f"{raw.key}: got a blank caption, expected words")
        if isinstance(raw, Raw):
            try:
                with Image.open(io.BytesIO(raw.image)) as image:
                    return Captioned(raw.key, np.asarray(on_white(image)), raw.caption)
            except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
                raw = Broken(f"{raw.key}: {error}")  # all of these are Pillow's words for a picture that is none
        self.broken = raw.reason
        self.position.corrupt += 1
        if self.position.corrupt > self.config.corrupt:
            got, most = self.position.corrupt, self.config.corrupt
            raise ValueError(f"got {got} broken samples, expected at most {most}; the last: {raw.reason}")
        return None


def on_white(image: Image.Image) -> Image.Image:
    """A picture as people see it, in RGB: turned as its camera was held, and on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image.convert("RGB")


def square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle of a picture `[H, W, 3]` as `[side, side, 3]`."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    middle = Image.fromarray(image[top : top + edge, left : left + edge])
    return np.asarray(middle.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0))
