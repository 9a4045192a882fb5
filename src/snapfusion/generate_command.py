"""The command `generate`: flags in, picture files and lines of text out."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from snapfusion import __version__
from snapfusion import generate as story
from snapfusion.bundle import Bundle, Network, Networks, read_bundle
from snapfusion.picture_file import check_out, stem_for, write_new, write_numbered
from snapfusion.png import encode_png
from snapfusion.runtimes.choice import RUNTIMES
from snapfusion.settings import Settings, new_seed, settings_for

Seconds = dict[str, float]


def _number(kind: type[int] | type[float], words: str) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads a number that may be left out, with our words for what is none."""

    def read(texts: list[str]) -> int | float:
        try:
            return kind(texts[0])
        except ValueError:
            raise ValueError(f"got {texts[0][:40]!r}, expected {words}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def _default(text: str, metavar: str | None = None) -> Any:
    return arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


WHOLE, REAL = _number(int, "a whole number"), _number(float, "a number")
OWN = _default("the bundle's own")


def generate(
    prompt: Annotated[Positional[str], _default("the lines of --prompts", "PROMPT")] = "",
    *,
    out: Annotated[Path | None, _default("named after the prompt, in this folder", "FILE.png")] = None,
    negative: Annotated[str, _default("nothing", "TEXT")] = "",
    seed: Annotated[int | None, WHOLE, _default("a new one every time")] = None,
    steps: Annotated[int | None, WHOLE, OWN] = None,
    guidance: Annotated[float | None, REAL, OWN] = None,
    n: Annotated[int, WHOLE] = 1,
    scheduler: Annotated[str | None, _default("the bundle's own", "ddim|dpm++|euler")] = None,
    guidance_stop: Annotated[float | None, REAL, OWN] = None,
    size: Annotated[int | None, WHOLE, OWN] = None,
    bundle: Annotated[Path | None, _default("the embedded one", "FOLDER")] = None,
    runtime: Annotated[str | None, _default("the best installed", "|".join(RUNTIMES))] = None,
    threads: Annotated[int | None, WHOLE, _default("all cores")] = None,
    low_memory: bool = False,
    prompts: Annotated[Path | None, _default("none", "FILE")] = None,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Draw pictures from a prompt.

    Args:
        prompt: What to draw.
        out: Where the picture goes; one that is there is replaced. With several pictures, -1, -2, ... is added.
        negative: What the picture should not show.
        seed: The same seed gives the same picture, 0 to 2^64-1.
        steps: Steps of the sampler, 1 to 1000. Those of the bundle suit it best.
        guidance: How closely to follow the prompt, 0 to 50; 1 is no guidance.
        n: Pictures, 1 to 64; their seeds follow one another.
        scheduler: The sampler.
        guidance_stop: Share of the steps that are guided, the first ones, above 0 and at most 1. The rest take half the
            time, and know nothing of a negative prompt.
        size: Pixels of a side; a bundle draws one size and refuses others.
        bundle: A bundle's folder.
        runtime: What runs the networks, of those that the bundle holds files of.
        threads: Threads of the CPU.
        low_memory: Keep one network in memory at a time; every picture opens them again.
        prompts: A text file with a prompt on every line; each is drawn as it would be alone.
        json: Print one JSON object and nothing else.
        quiet: Print nothing but warnings and errors.
    """
    started = time.perf_counter()
    texts = _prompts(prompt, prompts)
    if out is not None:
        check_out(out)
    opened = read_bundle(bundle, runtime)
    seed = new_seed() if seed is None else seed
    options = {
        "steps": steps,
        "guidance": guidance,
        "guidance_stop": guidance_stop,
        "scheduler": scheduler,
        "n": n,
        "size": size,
    }
    jobs = [one for text in texts for one in settings_for(opened, text, seed=seed, negative=negative, **options)]
    for remark in story.remarks(opened, jobs[0].steps, *texts, negative):
        print(f"snapfusion: {remark}", file=sys.stderr)

    seconds: Seconds = {"load": 0, "text": 0, "unet": 0, "decode": 0, "total": 0}

    def add_load(taken: float) -> None:
        seconds["load"] += taken

    rows = story.unet_rows(jobs[0].steps, jobs[0].guidance, jobs[0].guidance_stop)
    networks = _timed(story.open_networks(opened, rows, threads, low_memory, add_load), seconds)
    seconds["load"] = time.perf_counter() - started
    paths = _draw(opened, networks, jobs, out, n, quiet)
    seconds["total"] = time.perf_counter() - started
    if json:
        print(dumps(_record(paths, jobs[0], seconds), ensure_ascii=False))
    elif not quiet:
        _report(paths, jobs, seconds)


def _prompts(prompt: str, file: Path | None) -> list[str]:
    """What to draw: the prompt, or the lines of a file that are not blank."""
    if file is None:
        return [prompt]
    if prompt:
        raise ValueError(f"got a prompt and --prompts {file}, expected one of them")
    if not file.is_file():
        raise ValueError(f"got --prompts {file}, expected a text file")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"got --prompts {file}, expected text in UTF-8") from error
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"got --prompts {file} without a prompt, expected one on every line")
    return texts


def _draw(
    bundle: Bundle, networks: Networks, jobs: list[Settings], out: Path | None, n: int, quiet: bool
) -> list[Path]:
    """Draw and write the pictures one by one. Those that are whole stay when the next is interrupted."""
    paths = []
    with _progress(sum(job.steps for job in jobs), quiet) as on_step:
        for k, job in enumerate(jobs):
            image = story.generate(bundle, networks, job, on_step)
            data = encode_png(image, bundle, job, f"snapfusion {__version__}")
            if out is not None:
                paths.append(write_numbered(data, out, k + 1 if len(jobs) > 1 else None))
            else:
                paths.append(write_new(data, Path(), stem_for(job.prompt), k % n + 1 if n > 1 else None))
    return paths


@contextmanager
def _progress(steps: int, quiet: bool) -> Iterator[Callable[[], object]]:
    """A bar on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=steps, unit="step", leave=False) as bar:
        yield bar.update


def _timed(networks: Networks, seconds: Seconds) -> Networks:
    """The same networks, which add what they take to `seconds`, but for what is told there as loading meanwhile."""

    def timed(network: Network, entry: str) -> Network:
        def call(**inputs: NDArray[Any]) -> NDArray[np.float32]:
            started, loaded = time.perf_counter(), seconds["load"]
            output = network(**inputs)
            seconds[entry] += time.perf_counter() - started - (seconds["load"] - loaded)
            return output

        return call

    entries = ("text", "unet", "decode")
    return Networks(
        *(timed(getattr(networks, part.name), e) for part, e in zip(fields(networks), entries, strict=True))
    )


def _record(paths: list[Path], job: Settings, seconds: Seconds) -> dict[str, Any]:
    return {
        "images": [str(path) for path in paths],
        "seed": job.seed,
        "steps": job.steps,
        "guidance": job.guidance,
        "guidance_stop": job.guidance_stop,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


def _report(paths: list[Path], jobs: list[Settings], seconds: Seconds) -> None:
    for path, job in zip(paths, jobs, strict=True):
        print(f"{path}  (seed {job.seed}, {job.steps} steps, guidance {job.guidance:g})")
    print(", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
