"""Can two hands of the sticker set be told apart? A classifier tries, on held-out real pictures.

    python benchmarks/styles.py --data stickers [--pairs flat:simple ...] [--json FILE]

Judge A's backbone and style head, trained on all `train` pictures of the two hands and asked about the held-out ones
(`cells` and `concepts`). Hands that are not told apart 95 times of 100 draw in one style to a person's prompt, which is
why the two of "flat" do.
"""

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np

from record import write_record
from snapfusion.bench import BATCH
from snapfusion.data.pairs import Pair, load_index, read_images
from snapfusion.data.prompts import prompt_of
from snapfusion.data.styles import HANDS
from snapfusion.metrics import judge_a
from snapfusion.metrics.alignment import Subject, fit_judge
from snapfusion.metrics.features import VectorStore, image_vectors, sentence_vectors
from snapfusion.metrics.weights import default_cache

SOURCES = {hand.source: hand.name for hand in HANDS}


def accuracy(data: Path, pairs: list[Pair]) -> tuple[float, int]:
    """The share of held-out pictures whose hand is found, and their number."""
    store = VectorStore(default_cache() / "vectors.sqlite")
    batches = (read_images(data, pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH))
    vectors = image_vectors(judge_a.load_backbone("cpu", None), batches, store)
    sentences = sentence_vectors([prompt_of(pair) for pair in pairs], store)
    known = np.array([pair.split == "train" for pair in pairs])
    shown = [Subject(prompt_of(p), p.base, SOURCES[p.source]) for p in pairs if p.split == "train"]
    judge = fit_judge(vectors[known], sentences[known], shown, judge_a.SEED)
    hands = [SOURCES[pair.source] for pair in pairs if pair.split != "train"]
    return float(np.mean([a == b for a, b in zip(judge.style(vectors[~known]), hands, strict=True)])), len(hands)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a built sticker set")
    parser.add_argument("--pairs", nargs="+", default=["flat:simple"], help="two hands, as data/styles.py names them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pairs, rows = load_index(options.data), []
    for name in options.pairs:
        hands = name.split(":")
        start = perf_counter()
        share, count = accuracy(options.data, [pair for pair in pairs if SOURCES[pair.source] in hands])
        rows.append({"name": name, "seconds": perf_counter() - start, "accuracy": share, "held_out": count})
        print(f"{name:24}{share:>7.1%} of {count} held-out pictures")
    write_record(options.json, {"backbone": "resnet50", "data": str(options.data)}, rows)


if __name__ == "__main__":
    main()
