"""A sheet of pictures that the embedded bundle draws from prompts it never saw, beside the base's and the real ones.

    python benchmarks/gallery.py --data stickers [--base models/stickers-base] [--out docs/gallery] [--json FILE]

24 prompts of `cells` (concepts known from another style) and 24 of `concepts` (known from none), chosen and seeded by
hash, none picked by hand. Writes held-out.webp and held-out.md: for every prompt the base's picture in 50 steps of DDIM
by torch (bfloat16), below it the bundle's from the same seed, below that the real one. Without --base, those two alone.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

import snapfusion
from record import write_record
from snapfusion.checkpoint import hash_of, load_checkpoint
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.pairs import Pair, load_index, read_images
from snapfusion.data.prompts import prompt_of
from snapfusion.sampling import Sampling, decode, draw_latents, pixels

COLUMNS, SIDE, GAP = 12, 104, 8
BASE_STEPS, BATCH = 50, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a built sticker set")
    parser.add_argument("--subset", choices=("core", "full"), default="core", help="what the base was trained on")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    parser.add_argument("--bundle", type=Path, help="by default the embedded one")
    parser.add_argument("--base", type=Path, help="the checkpoint that it was made of")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    index = load_index(options.data, core=options.subset == "core")
    splits = {name: [pair for pair in index if pair.split == name] for name in ("cells", "concepts")}
    pairs = [pair for name, held_out in splits.items() for pair in chosen(held_out, 24, f"gallery {name}")]
    draw = snapfusion.open_bundle(options.bundle)

    rows = []
    bases = drawn_by(options.base, pairs, draw.bundle.manifest.defaults.guidance) if options.base else []
    order = "Ours is above, the real one below."
    if options.base:
        order = f"From above: the base ({hash_of(options.base)[:12]}, {BASE_STEPS} steps), ours, the real one."
    height = (3 if bases else 2) * SIDE + GAP
    sheet = Image.new("RGB", (COLUMNS * SIDE, len(pairs) // COLUMNS * height), "white")
    lines = [
        "# Held-out prompts",
        "",
        f"Bundle {draw.bundle.hash[:12]}. {order}",
        "",
    ]
    lines += ["![held-out prompts](held-out.webp)", "", "| row, column | split | prompt | seed |", "|---|---|---|---|"]
    for place, (pair, real) in enumerate(zip(pairs, read_images(options.data, pairs), strict=True)):
        start = time.perf_counter()
        (image,) = draw(prompt_of(pair), seed=seed_of(pair))
        rows.append({"name": prompt_of(pair), "seconds": time.perf_counter() - start, "seed": seed_of(pair)})
        left, top = place % COLUMNS * SIDE, place // COLUMNS * height
        column = [*bases[place : place + 1], image, Image.fromarray(np.ascontiguousarray(real))]
        for level, picture in enumerate(column):
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top + level * SIDE))
        where = f"{place // COLUMNS + 1}, {place % COLUMNS + 1}"
        lines.append(f"| {where} | {pair.split} | {prompt_of(pair)} | {seed_of(pair)} |")
    options.out.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out / "held-out.webp", quality=82)
    (options.out / "held-out.md").write_text("\n".join(lines) + "\n")
    defaults = draw.bundle.manifest.defaults
    protocol = {"bundle": draw.bundle.hash, "steps": defaults.steps, "guidance": defaults.guidance}
    write_record(options.json, protocol, rows)


def drawn_by(folder: Path, pairs: list[Pair], guidance: float) -> list[Image.Image]:
    """The pictures of a checkpoint, undistilled."""
    checkpoint, found = load_checkpoint(folder), list[Image.Image]()
    sampling = Sampling(BASE_STEPS, guidance, bf16=True)
    for first in range(0, len(pairs), BATCH):
        part = pairs[first : first + BATCH]
        latents = draw_latents(checkpoint, [*map(prompt_of, part)], [*map(seed_of, part)], sampling)
        found += [Image.fromarray(picture) for picture in pixels(decode(checkpoint.vae, latents))]
    return found


if __name__ == "__main__":
    main()
