"""A sheet of pictures that the embedded bundle draws from prompts it never saw, beside the real ones.

    python benchmarks/gallery.py --data stickers [--out docs/gallery] [--json FILE]

24 prompts of `cells` (concepts known from another style) and 24 of `concepts` (known from none), chosen and seeded by
hash, none picked by hand. Writes held-out.webp, with every drawn picture above the real one, and held-out.md.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

import snapfusion
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.pairs import load_index, read_images
from snapfusion.data.prompts import prompt_of

COLUMNS, SIDE, GAP = 12, 104, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a built sticker set")
    parser.add_argument("--subset", choices=("core", "full"), default="core", help="what the base was trained on")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    parser.add_argument("--bundle", type=Path, help="by default the embedded one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    index = load_index(options.data, core=options.subset == "core")
    splits = {name: [pair for pair in index if pair.split == name] for name in ("cells", "concepts")}
    pairs = [pair for name, held_out in splits.items() for pair in chosen(held_out, 24, f"gallery {name}")]
    draw = snapfusion.open_bundle(options.bundle)

    rows = []
    height = 2 * SIDE + GAP
    sheet = Image.new("RGB", (COLUMNS * SIDE, len(pairs) // COLUMNS * height), "white")
    lines = [
        "# Held-out prompts",
        "",
        f"Bundle {draw.bundle.hash[:12]}; in each pair ours is above, the real one below.",
        "",
    ]
    lines += ["![ours above real](held-out.webp)", "", "| row, column | split | prompt | seed |", "|---|---|---|---|"]
    for place, (pair, real) in enumerate(zip(pairs, read_images(options.data, pairs), strict=True)):
        start = time.perf_counter()
        (image,) = draw(prompt_of(pair), seed=seed_of(pair))
        rows.append({"name": prompt_of(pair), "seconds": time.perf_counter() - start, "seed": seed_of(pair)})
        left, top = place % COLUMNS * SIDE, place // COLUMNS * height
        for picture, down in ((image, 0), (Image.fromarray(np.ascontiguousarray(real)), SIDE)):
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top + down))
        where = f"{place // COLUMNS + 1}, {place % COLUMNS + 1}"
        lines.append(f"| {where} | {pair.split} | {prompt_of(pair)} | {seed_of(pair)} |")
    options.out.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out / "held-out.webp", quality=82)
    (options.out / "held-out.md").write_text("\n".join(lines) + "\n")
    if options.json:
        defaults = draw.bundle.manifest.defaults
        protocol = {"bundle": draw.bundle.hash, "steps": defaults.steps, "guidance": defaults.guidance}
        options.json.write_text(json.dumps({"protocol": protocol, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
