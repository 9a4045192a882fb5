"""What `snapfusion evolve` claims, measured: proxies of scores, robustness, and rivals.

    python benchmarks/evolve.py scores     models/stickers-base --data SET --table table.json --out runs/scores
    python benchmarks/evolve.py robustness models/stickers-base --data SET --table table.json --out runs/robustness
    python benchmarks/evolve.py rivals     models/stickers-base --data SET --table table.json --out runs/rivals \
        --budget-ms 20

scores      every block by the full protocol (--full-prompts 500 x --full-steps 50), by the proxy (64 x 8), by the
            distance of latents (16 x 6) and by two losses without sampling: rank correlations of the values with the
            full protocol's, and the seconds of each.
robustness  Fig. 5 in numbers and pictures: the base trained on with p = 0 and with p = --skip for as many pictures,
            then drawn without each kind of block in each stage.
rivals      what evolution has to beat: removal by hand (BK-SDM, Table 3) and by chance, and uniform width, fine-tuned
            as evolved networks are. Each is a checkpoint for `snapfusion evaluate`.

Every command goes on where it was stopped, takes the flags of `snapfusion evolve`, and writes OUT/figures.json and the
same to --json FILE.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image

from record import write_record
from snapfusion.checkpoint import load_unet, save_checkpoint, save_unet
from snapfusion.data.choice import chosen, seed_of
from snapfusion.data.pairs import load_index
from snapfusion.data.prompts import prompt_of
from snapfusion.json_file import read_json, write_json
from snapfusion.model.architecture import Architecture
from snapfusion.model.narrow import narrow
from snapfusion.model.unet import ElasticUNet
from snapfusion.sampling import Sampling, decode, embed, latent_shape, noise_of, pixels, sample_latents
from snapfusion.stages.evolve.baselines import by_chance, by_hand
from snapfusion.stages.evolve.config import Config
from snapfusion.stages.evolve.finetune import finetune
from snapfusion.stages.evolve.robust import Without, train_robustly
from snapfusion.stages.evolve.rounds import measure_blocks, scores_of, timed
from snapfusion.stages.evolve.scores import spearman
from snapfusion.stages.evolve.search import Goal
from snapfusion.stages.evolve.setting import Setting, Sources, prepare
from snapfusion.stages.evolve.stage import milliseconds_by
from snapfusion.stages.evolve.trial import FULL, PROXY
from snapfusion.table import load_table

Flags = Annotated[Config, tyro.conf.OmitArgPrefixes]


def setting_of(config: Config, checkpoint: Path, data: Path, table: Path, out: Path) -> Setting:
    """The base, its latents and its judge, as a search would have them."""
    sources = Sources(checkpoint, data, load_table(table), None)
    cost = milliseconds_by(sources.table)
    return prepare(config, sources, Goal(config.budget_ms, cost, "ms", cost), out)


def write(out: Path, json: Path | None, protocol: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    named = [{"name": name, **row} for name, row in rows.items()]
    for file in (out / "figures.json", json):
        write_record(file, {"quality": protocol}, named)


def scores(
    checkpoint: tyro.conf.Positional[Path],
    *,
    data: Path,
    table: Path,
    out: Path,
    unet: Path | None = None,
    full_prompts: int = FULL.prompts,
    full_steps: int = FULL.steps,
    json: Path | None = None,
    config: Flags,
) -> None:
    """Rank correlation of cheap scores with the full protocol's, and what each costs.

    Args:
        unet: A folder that holds `unet/`, to be scored in place of the checkpoint's: an evolution's rounds/00.
        full_prompts: Pictures of each network by what the others are held against.
        full_steps: Steps of DDIM to each of them.
    """
    ways = {
        "drawing, full": replace(config, score="drawing", prompts=full_prompts, steps=full_steps),
        "drawing, proxy": replace(config, score="drawing", prompts=PROXY.prompts, steps=PROXY.steps),
        "trajectory": replace(config, score="trajectory", prompts=16, steps=6),
        "denoising loss": replace(config, score="denoising"),
        "output distance": replace(config, score="output"),
    }
    found, protocol = {}, ""
    for name, way in ways.items():
        folder = out / name.replace(", ", "-").replace(" ", "-")
        setting = setting_of(way, checkpoint, data, table, folder)
        network = (load_unet(unet) if unet is not None else setting.base.unet).eval()
        network.to(setting.base.unet.device)  # pyright: ignore[reportArgumentType]
        with timed(folder, "scoring"):
            merits = measure_blocks(setting.trial, network, folder / "merits.json", setting.seconds_left)
        seconds, protocol = read_json(folder / "timings.json")["scoring"], protocol or setting.trial.protocol
        found[name] = (scores_of(network.architecture, merits, setting.trial.scale, setting.goal.saving), seconds)
    truth = [score.value for score in found["drawing, full"][0]]
    print(f"{'score':<18}{'Spearman':>10}{'seconds':>10}{'share':>9}")
    rows = {}
    for name, (blocks, seconds) in found.items():
        rho, share = spearman([score.value for score in blocks], truth), seconds / found["drawing, full"][1]
        print(f"{name:<18}{rho:>10.3f}{seconds:>10.0f}{share:>9.4f}")
        rows[name] = {"spearman": rho, "seconds": seconds, "scores": [score.to_dict() for score in blocks]}
    write(out, json, protocol, rows)


def robustness(
    checkpoint: tyro.conf.Positional[Path],
    *,
    data: Path,
    table: Path,
    out: Path,
    json: Path | None = None,
    config: Flags,
) -> None:
    """Quality without each kind of block in each stage, after training with and without skipping."""
    setting = setting_of(config, checkpoint, data, table, out)
    base = setting.base.unet
    networks = {"base": base}
    for name, skip in (("trained on", 0.0), ("robust", config.skip)):
        folder = out / name.replace(" ", "-")
        if not (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file():
            network = base.evolve(base.architecture).requires_grad_(True)
            schooling = replace(config, skip=skip).schooling(setting.seconds_left())
            train_robustly(network, base, setting.data, schooling, 0, folder / "training")
            save_unet(network, folder)
        networks[name] = load_unet(folder)
        networks[name].to(base.device)  # pyright: ignore[reportArgumentType]
    removals = removals_of(base.architecture)
    rows = {}
    for removal, off in removals.items():
        file = out / "removals" / f"{removal.replace(', ', '-').replace(' ', '-')}.json"
        if not file.is_file():
            start = time.perf_counter()
            qualities = {name: asdict(setting.trial.quality(network, off)) for name, network in networks.items()}
            write_json(file, {"seconds": time.perf_counter() - start, **qualities})
        rows[removal] = read_json(file)
    print(f"{setting.trial.protocol}\n{'without':<32}{'blocks':>7}" + "".join(f"{name:>12}" for name in networks))
    for removal, off in removals.items():
        print(f"{removal:<32}{len(off):>7}" + "".join(f"{rows[removal][name]['value']:>12.3f}" for name in networks))
    write(out, json, setting.trial.protocol, rows)
    for name, network in networks.items():
        sheet(setting, network, removals).save(out / f"{name.replace(' ', '-')}.webp", quality=85)


def removals_of(architecture: Architecture) -> dict[str, frozenset[str]]:
    """All blocks of a kind in a stage that can go, by a name for them; the whole network first."""
    found: dict[str, frozenset[str]] = {"nothing": frozenset()}
    for block in architecture.blocks():
        if block.removable:
            name = f"{block.stage}, {block.kind}s"
            found[name] = found.get(name, frozenset()) | {block.name}
    return found


def sheet(
    setting: Setting, network: ElasticUNet, removals: Mapping[str, frozenset[str]], columns: int = 6
) -> Image.Image:
    """A row for each removal, the same prompts and seeds in each, 50 steps."""
    base, config = setting.base, setting.config
    pairs = chosen(
        [pair for pair in load_index(setting.sources.data, core=True) if pair.split == "cells"], columns, "sheet"
    )
    embedding = embed(base, ["", *map(prompt_of, pairs)])
    noise = noise_of(latent_shape(base), [seed_of(pair) for pair in pairs]).to(embedding.device)
    sampling = Sampling(50, config.guidance, bf16=config.precision == "bf16")
    rows = []
    for off in removals.values():
        without = Without(network.eval(), off)
        latent = sample_latents(without, base.schedule, embedding[1:], embedding[:1], noise, sampling)
        rows.append(np.concatenate(list(pixels(decode(base.vae, latent))), axis=1))
    whole = Image.fromarray(np.concatenate(rows))
    return whole.resize((columns * 128, len(rows) * 128), Image.Resampling.LANCZOS)


def rivals(
    checkpoint: tyro.conf.Positional[Path],
    *,
    data: Path,
    table: Path,
    out: Path,
    share: float = 0.7,
    draws: int = 3,
    json: Path | None = None,
    config: Flags,
) -> None:
    """Fine-tune every rival as evolved networks are, and write it as a checkpoint.

    Args:
        share: Of all widths, for the narrow one.
        draws: Removals by chance to each of --budget-ms.
    """
    setting = setting_of(config, checkpoint, data, table, out)
    base, cost = setting.base.unet, setting.goal.cost
    students: dict[str, Callable[[], ElasticUNet]] = {}
    for name, architecture in by_hand(base.architecture.widths).items():
        students[name] = lambda architecture=architecture: base.evolve(architecture)
    for budget in config.budget_ms:
        for seed in range(draws):
            architecture = by_chance(base.architecture, cost, budget, seed)
            students[f"chance-{budget:g}ms-{seed}"] = lambda architecture=architecture: base.evolve(architecture)
    students[f"width-{share:g}"] = lambda: narrow(base, share)
    print(f"{setting.trial.protocol}\n{'rival':<20}{'ms':>8}{'M':>8}{'quality':>10}")
    rows = {}
    for name, student in students.items():
        rows[name] = row = rival(setting, name, student, out / name)
        milliseconds = f"{row['milliseconds']:.2f}" if row["milliseconds"] is not None else "measure"
        print(f"{name:<20}{milliseconds:>8}{row['parameters'] / 1e6:>8.1f}{row['quality']['value']:>10.3f}", flush=True)
    write(out, json, setting.trial.protocol, rows)


def rival(setting: Setting, name: str, student: Callable[[], ElasticUNet], folder: Path) -> dict[str, Any]:
    """One rival, fine-tuned; at other widths no features match, and no table knows its price."""
    if (folder / "rival.json").is_file():
        return read_json(folder / "rival.json")
    start = time.perf_counter()
    network, config = student().requires_grad_(True), setting.config
    as_wide = network.architecture.widths == setting.base.unet.architecture.widths
    weights = config.distillation if as_wide else replace(config.distillation, features=0.0)
    fit = config.finetuning(setting.seconds_left())
    finetune(network, setting.base.unet, setting.data, weights, fit, folder / "training")
    save_checkpoint(replace(setting.base, unet=network), folder, torch.float16)
    row = {
        "milliseconds": setting.goal.cost(network.architecture) if as_wide else None,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "quality": asdict(setting.trial.quality(network)),
        "seconds": time.perf_counter() - start,
    }
    write_json(folder / "rival.json", row)
    return row


if __name__ == "__main__":
    commands = {"scores": scores, "robustness": robustness, "rivals": rivals}
    tyro.extras.subcommand_cli_from_dict(commands)
