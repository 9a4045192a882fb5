"""How near few steps come to many, by sampler and by where the steps are.

    python benchmarks/few_steps.py CHECKPOINT --data SET [--steps 8 6 4] [--shifts 1 2 3 4 6] [--json FILE]

Prompts of `cells` and of `train`, half and half, drawn in torch (UNet in bfloat16) with 50 steps of DDIM; then from the
same noise with fewer steps of each sampler, with each timestep shift. Printed: relative error of the latents, which
`snapfusion export --timestep-shift search` goes by, and PSNR and LPIPS of the pictures.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from record import write_record
from snapfusion.checkpoint import load_checkpoint
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.pairs import load_index
from snapfusion.data.prompts import prompt_of
from snapfusion.diffusion.sampler import Scheduler
from snapfusion.metrics.fidelity import psnr
from snapfusion.metrics.lpips import load_lpips
from snapfusion.sampling import Sampling, decode
from snapfusion.stages.export.shift import MANY_STEPS, latents, relative_error

BATCH = 16
SCHEDULERS: tuple[Scheduler, ...] = ("ddim", "dpm++")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="a built sticker set")
    parser.add_argument("--subset", choices=("core", "full"), default="core", help="what the base was trained on")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 6, 4])
    parser.add_argument("--shifts", type=float, nargs="+", default=[1, 2, 3, 4, 6])
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    checkpoint, lpips = load_checkpoint(options.checkpoint), load_lpips()
    index = load_index(options.data, core=options.subset == "core")
    splits = [[pair for pair in index if pair.split == name] for name in ("cells", "train")]
    asked = [pair for split in splits for pair in chosen(split, options.pictures // 2, "few steps")]

    prompts, seeds = [*map(prompt_of, asked)], [*map(seed_of, asked)]

    def drawn_with(shift: float, sampling: Sampling) -> Tensor:
        placed = replace(checkpoint, schedule=checkpoint.schedule.placed(shift))
        return latents(placed, prompts, seeds, sampling)

    def pictures(latent: Tensor) -> Tensor:
        return torch.cat([decode(checkpoint.vae, part) for part in latent.split(BATCH)])

    many = drawn_with(1.0, Sampling(MANY_STEPS, options.guidance, bf16=True))
    target = pictures(many)
    rows: list[dict[str, Any]] = []
    for steps in options.steps:
        for scheduler in SCHEDULERS:
            for shift in options.shifts:
                start = perf_counter()
                few = drawn_with(shift, Sampling(steps, options.guidance, scheduler, bf16=True))
                seconds, drawn = perf_counter() - start, pictures(few)
                with torch.inference_mode():
                    pairs = zip(drawn.split(BATCH), target.split(BATCH), strict=True)
                    distance = torch.cat([lpips(one, other) for one, other in pairs]).mean().item()
                error, nearness = relative_error(few, many), psnr(drawn, target).median().item()
                name = f"{steps} steps of {scheduler}, shift {shift:g}"
                print(f"{name:32}{error:>7.3f}{nearness:>7.1f} dB  LPIPS {distance:.4f}", flush=True)
                found = {"relative_error": error, "psnr_db": nearness, "lpips": distance}
                rows.append({"name": name, "seconds": seconds} | found)
    protocol = {
        "checkpoint": str(options.checkpoint),
        "pictures": len(asked),
        "guidance": options.guidance,
        "against": f"{MANY_STEPS} steps of ddim",
        "torch": torch.__version__,
    }
    write_record(options.json, protocol, rows)


if __name__ == "__main__":
    main()
