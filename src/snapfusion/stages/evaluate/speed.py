"""How long models take and how much memory: side by side in one run, for only the ratio outlives the machine's mood.

Warm: each part alone and the whole picture, called in turns, medians after one call that does not count. Cold: a new
process from nothing to a picture, as a person waits for it, and the most memory that it held.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
import torch

from snapfusion.autocast import autocast
from snapfusion.checkpoint import Checkpoint
from snapfusion.generate import OpenBundle
from snapfusion.sampling import decode, embed, latent_shape
from snapfusion.stages.evaluate.exam import Request
from snapfusion.stages.evaluate.model import Model
from snapfusion.tokens import tokenize

# A process that starts another and tells how long it took and the most memory it held. It stands between because Linux
# counts what the parent held at the start of a process to that process, and this one holds next to nothing.
TIME_A_PROCESS = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
print(json.dumps({"status": status, "seconds": seconds, "bytes": usage.ru_maxrss * unit}))
"""
DRAW_ONCE = """
import sys
from pathlib import Path
from snapfusion.sampling import Sampling
from snapfusion.stages.evaluate.draw_once import draw_once
folder, device, steps, guidance, stop, scheduler, precision, prompt, seed = sys.argv[1:]
sampling = Sampling(int(steps), float(guidance), scheduler, float(stop), precision == "bf16")
draw_once(Path(folder), device, sampling, prompt, int(seed))
"""


@dataclass(frozen=True)
class Spread:
    """Of several runs."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """Of one model on this machine."""

    parts_ms: dict[str, Spread]
    """One call, with both rows that guidance needs, which steps after its stop do without; the decoder has one."""
    warm_s: Spread
    cold_s: Spread
    peak_bytes: int
    """Most memory of the cold process."""


def measure_speed(models: Sequence[Model], guidances: Sequence[float], request: Request, runs: int) -> dict[str, Any]:
    """Time models that draw the same request, each with its guidance, `runs` times in turns; for `timings.json`."""
    calls: list[dict[str, Callable[[], object]]] = []
    for model, guidance in zip(models, guidances, strict=True):
        assert model.opened is not None, f"{model.name} is a function: it has no parts"
        parts = parts_of(model.opened, request.prompt, guided=guidance != 1, bf16=model.bf16)
        calls.append({**parts, "picture": partial(_draw_first, model, request, guidance)})
    warm = time_in_turns(calls, runs)
    cold: list[list[tuple[float, int]]] = [[] for _ in models]
    for _ in range(runs):
        for processes, model, guidance in zip(cold, models, guidances, strict=True):
            processes.append(time_a_process(cold_command(model, request, guidance)))
    speeds = [
        Speed(
            {name: _spread(times, 1000) for name, times in taken.items() if name != "picture"},
            _spread(taken["picture"]),
            _spread([seconds for seconds, _ in processes]),
            max(peak for _, peak in processes),
        )
        for taken, processes in zip(warm, cold, strict=True)
    ]
    return {"machine": machine(), "runs": runs, "prompt": request.prompt, "models": [asdict(speed) for speed in speeds]}


def parts_of(
    opened: OpenBundle | Checkpoint, prompt: str, guided: bool, bf16: bool = False
) -> dict[str, Callable[[], object]]:
    """Each network as drawing calls it, ready to be called."""
    prompts = ["", prompt] if guided else [prompt]
    if isinstance(opened, Checkpoint):
        return _torch_parts(opened, prompts, bf16)
    bundle, networks = opened.bundle, opened.networks
    tokens, _ = tokenize(bundle.tokenizer, prompts, bundle.length)
    embedding, t = networks.text_encoder(input_ids=tokens), np.array([1])
    latents = np.zeros((len(prompts), *bundle.latent_shape), np.float32)
    return {
        "text_encoder": lambda: networks.text_encoder(input_ids=tokens),
        "unet": lambda: networks.unet(sample=latents, timestep=t, encoder_hidden_states=embedding),
        "vae_decoder": lambda: networks.vae_decoder(latent_sample=latents[:1]),
    }


def _torch_parts(checkpoint: Checkpoint, prompts: list[str], bf16: bool) -> dict[str, Callable[[], object]]:
    unet, vae = checkpoint.unet, checkpoint.vae
    embedding = embed(checkpoint, prompts)
    latents = torch.zeros(len(prompts), *latent_shape(checkpoint), device=unet.device)

    @torch.no_grad()
    def predict() -> object:
        with autocast(unet.device, bf16):
            return unet(latents, 1, embedding).sample.cpu()  # waits for a device

    return {
        "text_encoder": lambda: embed(checkpoint, prompts).cpu(),
        "unet": predict,
        "vae_decoder": lambda: decode(vae, latents[:1]).cpu(),
    }


def _draw_first(model: Model, request: Request, guidance: float) -> object:
    return next(iter(model.draw([request.prompt], [request.seed], guidance)))


def time_in_turns(calls: Sequence[dict[str, Callable[[], object]]], runs: int) -> list[dict[str, list[float]]]:
    """Seconds of `runs` calls of each function of each model, in turns, after one that does not count."""
    taken: list[dict[str, list[float]]] = [{name: [] for name in named} for named in calls]
    for run in range(runs + 1):
        for named, times in zip(calls, taken, strict=True):
            for name, call in named.items():
                start = time.perf_counter()
                call()
                if run:
                    times[name].append(time.perf_counter() - start)
    return taken


def cold_command(model: Model, request: Request, guidance: float) -> list[str]:
    """The command of a process that draws one picture: `snapfusion generate`, or the same of a checkpoint in torch."""
    folder, steps, seed = str(model.folder.resolve()), str(model.steps), str(request.seed)
    guided = str(guidance), str(model.guidance_stop)
    if isinstance(model.opened, Checkpoint):
        device = model.opened.unet.device.type
        asked = [model.scheduler, "bf16" if model.bf16 else "fp32", request.prompt, seed]
        return [sys.executable, "-c", DRAW_ONCE, folder, device, steps, *guided, *asked]
    flags = ["--bundle", folder, "--steps", steps, "--guidance", guided[0], "--guidance-stop", guided[1]]
    flags += ["--scheduler", model.scheduler, "--seed", seed, "--quiet"]
    return [sys.executable, "-m", "snapfusion", "generate", request.prompt, *flags]


def time_a_process(command: Sequence[str]) -> tuple[float, int]:
    """Seconds from start to end of a process, and the most memory it held at once, bytes. On Linux and macOS."""
    with tempfile.TemporaryDirectory() as folder:  # where it may leave a picture
        done = subprocess.run(
            [sys.executable, "-S", "-c", TIME_A_PROCESS, *command],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    if told["status"] != 0:
        raise RuntimeError(f"a process that draws a picture failed: {done.stderr.strip()[-500:]}")
    return told["seconds"], told["bytes"]


def _spread(values: Sequence[float], scale: float = 1) -> Spread:
    return Spread(median(values) * scale, min(values) * scale, max(values) * scale)


def machine() -> dict[str, Any]:
    """Where it was measured."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": cores,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "busy": round(os.getloadavg()[0], 2),  # processes that wanted to run, over the last minute
        "system": platform.platform(),
        "torch": torch.__version__,
        "openvino": openvino.__version__,
    }
