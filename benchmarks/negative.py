"""Does a model obey a negative prompt? Pictures of one colour are asked for without that colour.

    python benchmarks/negative.py [BUNDLE ...] --data stickers [--pairs 50] [--steps N] [--json FILE]

"A strawberry, 3D render" is drawn twice from one seed: as it is, and with the negative prompt "red". For every bundle
(by default the embedded one): the share of what is drawn that has the colour, without and with the negative prompt; in
how many pictures it fell; and how well both still show the prompt, by judge B (the cosine to their own prompt less the
mean of those to others, real pictures' beside it).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import snapfusion
from record import write_record
from snapfusion.bench import Bench, open_bench
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.colours import HUES, Pixels
from snapfusion.data.pairs import Pair, load_index
from snapfusion.data.prompts import prompt_of
from snapfusion.metrics import judge_b
from snapfusion.metrics.features import VectorStore, image_vectors
from snapfusion.metrics.weights import default_cache

NEAR = 25  # degrees between a hue and the one that a colour word stands for
BATCH = 16


def share_of_colour(image: NDArray[np.uint8], word: str) -> float:
    """The share of the drawn pixels of an `[H, W, 3]` picture on white that have the colour."""
    pixels = Pixels.of(image)
    distance = np.abs((pixels.hue - HUES[word] + 180) % 360 - 180)
    return float((pixels.coloured & (distance < NEAR)).sum() / max(int(pixels.drawn.sum()), 1))


def measure(folder: Path | None, steps: int | None, asked: list[Pair], bench: Bench) -> dict[str, object]:
    """The row of one bundle."""
    draw = snapfusion.open_bundle(folder)
    steps, start = steps or draw.bundle.manifest.defaults.steps, time.perf_counter()
    shares, gaps = [], []
    for negated in (False, True):
        images = [
            np.asarray(draw(prompt_of(p), seed=seed_of(p), steps=steps, negative=str(p.colour) if negated else "")[0])
            for p in asked
        ]
        shares.append(np.array([share_of_colour(image, str(p.colour)) for image, p in zip(images, asked, strict=True)]))
        batches = (np.stack(images[first : first + BATCH]) for first in range(0, len(images), BATCH))
        gaps.append(bench.verdict(image_vectors(bench.backbone, batches), asked).gap.mean())
    plain, negated = shares
    return {
        "name": f"{draw.bundle.manifest.name} {draw.bundle.hash[:12]}, {steps} steps",
        "seconds": time.perf_counter() - start,
        "share": float(plain.mean()),
        "share_negated": float(negated.mean()),
        "fell": float((negated < plain).mean()),
        "gap": float(gaps[0]),
        "gap_negated": float(gaps[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*")
    parser.add_argument("--data", type=Path, required=True, help="a built sticker set")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--steps", type=int, help="by default each bundle's own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    index = load_index(options.data, core=True)
    bench = open_bench(judge_b, options.data, index, VectorStore(default_cache() / "vectors.sqlite"), "cpu", None)
    coloured = [pair for pair in bench.unseen(index) if pair.colour in HUES]
    asked = chosen(coloured, options.pairs, "negative")
    real = float(bench.verdict(bench.real(asked), asked).gap.mean())
    rows = [measure(folder, options.steps, asked, bench) for folder in options.bundles or [None]]
    print(f"{'':44}{'colour':>8}{'negated':>9}{'fell in':>9}{'gap':>8}{'negated':>9}{'real':>7}")
    for row in rows:
        print(
            f"{row['name']:44}{row['share']:>8.1%}{row['share_negated']:>9.1%}{row['fell']:>9.0%}"
            f"{row['gap']:>8.3f}{row['gap_negated']:>9.3f}{real:>7.3f}"
        )
    write_record(options.json, {"pairs": len(asked), "near_degrees": NEAR, "real_gap": real}, rows)


if __name__ == "__main__":
    main()
