"""How much of a distillation's time is the networks: `fit` with Eq. 11 against the bare calls that it consists of.

    python benchmarks/distill_steps.py --data SET [--student models/stickers-base] [--teacher ...] [--json FILE]

The bare calls: a vanilla batch is two forwards of the teacher and a forward and a backward of the student; a CFG-aware
batch is the same with twice the rows. They are timed on fixed tensors, before and after a run of which every other
batch is CFG-aware. The rest of the run's time is drawing batches, the formulas, gradient clipping, AdamW and EMA. The
last row mixes the two as the default p does; the bar is 0.9.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from record import write_record
from snapfusion.autocast import autocast
from snapfusion.checkpoint import hash_of, load_checkpoint
from snapfusion.fit import Share, fit
from snapfusion.stages.distill_steps.batch import Batch, draw_batch
from snapfusion.stages.distill_steps.config import Config
from snapfusion.stages.distill_steps.grid import leaps
from snapfusion.stages.distill_steps.lesson import distillation_loss
from snapfusion.stages.distill_steps.training import device_of_run, read_caches


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], runs: int, device: torch.device) -> float:
    """Median of `runs` calls, after one that does not count."""
    found = []
    for _ in range(runs + 1):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return median(found[1:])


def bare(student: nn.Module, teacher: nn.Module, batch: Batch, bf16: bool) -> None:
    """The forwards and backwards of one batch, and nothing else."""
    times = 1 if batch.w is None else 2
    given = [torch.cat([part] * times) for part in (batch.latent, batch.leap.t, batch.embedding)]
    with autocast(batch.latent.device, bf16):
        with torch.no_grad():
            teacher(*given)
            teacher(*given)
        student(*given).sample.sum().backward()
    student.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--student", type=Path, default=Path("models/stickers-base"))
    parser.add_argument("--teacher", type=Path, help="by default the student")
    parser.add_argument("--cache", type=Path, help="a folder of latents and embeddings that is there already")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30, help="steps of training that are timed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    device = device_of_run()
    student, teacher = load_checkpoint(options.student), load_checkpoint(options.teacher or options.student)
    count = 2 * options.steps  # the first half warms up
    config = Config(images=count * options.batch, batch=options.batch, p=0.5, tracker=None)
    bf16 = config.precision == "bf16"
    with tempfile.TemporaryDirectory() as folder:
        cache, _ = read_caches(config, student, options.data, options.cache or Path(folder) / "cache")
        grid = leaps(replace(student.schedule, timestep_spacing="trailing"), config.steps).to(device)
        own, guide = student.unet.train().to(device), teacher.unet.eval().requires_grad_(False).to(device)
        if device.type == "cpu":
            own.set_attn_processor(AttnProcessor())
        marks: dict[int, float] = {}
        guided: dict[int, bool] = {}

        def loss(unet: nn.Module, step: int, share: Share) -> Tensor:
            synchronise(device)
            marks[step] = time.perf_counter()
            batch = draw_batch(cache, grid, config, step)[share.rows]
            guided[step] = batch.w is not None
            return distillation_loss(unet, guide, batch, config.gamma, bf16)

        batches = {p > 0: draw_batch(cache, grid, replace(config, p=p), 0) for p in (0.0, 1.0)}
        alone = {p: seconds(lambda p=p: bare(own, guide, batches[p], bf16), 5, device) for p in batches}
        fit(own, loss, config.fit_config("benchmark"), Path(folder) / "fit")
        again = {p: seconds(lambda p=p: bare(own, guide, batches[p], bf16), 5, device) for p in batches}

    # From the start of a step's loss to that of the next: all that a step costs, saving apart.
    spans = {p: [marks[s + 1] - marks[s] for s in range(options.steps, count - 1) if guided[s] == p] for p in batches}
    if not all(spans.values()):
        raise SystemExit(f"got {options.steps} steps, all of one kind; time more of them")
    whole = {p: median(spans[p]) for p in batches}
    alone = {p: (alone[p] + again[p]) / 2 for p in batches}  # before and after: the machine may have warmed up
    rows = []
    for p, name in ((False, "vanilla"), (True, "CFG-aware")):
        rows.append({"name": name, "seconds": whole[p], "bare_s": alone[p], "share": alone[p] / whole[p]})
    print(f"{'loss':12}{'bare s':>10}{'step s':>10}{'share':>8}")
    for row in rows:
        print(f"{row['name']:12}{row['bare_s']:>10.3f}{row['seconds']:>10.3f}{row['share']:>8.2f}")
    mixed = [(1 - Config.p) * times[False] + Config.p * times[True] for times in (alone, whole)]
    print(f"{'mixed':12}{mixed[0]:>10.3f}{mixed[1]:>10.3f}{mixed[0] / mixed[1]:>8.2f}   p = {Config.p}, bar 0.90")
    protocol = {
        "student": hash_of(options.student),
        "teacher": hash_of(options.teacher or options.student),
        "batch": options.batch,
        "steps": options.steps,
        "precision": config.precision,
        "device": str(device),
        "torch": torch.__version__,
    }
    write_record(options.json, protocol, rows, share=mixed[0] / mixed[1])


if __name__ == "__main__":
    main()
