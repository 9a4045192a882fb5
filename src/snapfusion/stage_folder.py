"""A stage's folder: done once, resumed after a kill, never half there, never mistaken for another's.

A stage works in `OUT.partial`, which outlives a kill and says from its first moment on what it is made from. When the
stage is done, `result.json` is written there last and the folder becomes `OUT` by one rename. So `OUT` is there and
whole, or not there at all; the same call on it only reads. A second process that is given the folder meanwhile is
refused.

Where several processes train together, all of them do the stage's work, for each takes its share of every batch: the
main one in `OUT.partial`, each other in a copy of that, which is thrown away. So they go on from the same state.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from snapfusion.json_file import read_json, write_json
from snapfusion.processes import count, main_first, meet, rank

RESULT = "result.json"
SOURCE = "source.json"
LOCK = "lock"
PARTIAL = ".partial"
TIMINGS = "timings.json"
"""How long things took: differs from run to run, and so enters no hash."""
CURVES = "curves"
"""A folder of what trackers draw, which does so too."""


_within: ContextVar[bool] = ContextVar("within", default=False)
"""Whether a stage is at work in this process: one that it calls is its own affair, no other process's."""


class PausedError(Exception):
    """A stage stopped on request before its end; the same call goes on."""


def run_in_folder(
    out: Path,
    config: Any,
    inputs: Mapping[str, str],
    work: Callable[[Path], Mapping[str, Any]],
    free: tuple[str, ...] = (),
    alone: bool = False,
) -> dict[str, Any]:
    """The figures of a stage: read from `out` if they are there, else what `work(folder)` measures and returns.

    Args:
        out: The stage's folder.
        config: The stage's frozen dataclass.
        inputs: What the stage reads, by name: hashes, not paths.
        work: Fills the folder that it is given. If an earlier call was killed it finds there what that one left.
        free: Fields of `config` that change when a run pauses but not what it comes to.
        alone: Whether of several processes the main one is to do it by itself: what takes times, or trains nothing.

    Raises:
        ValueError: `out` or `out.partial` is of another config or other inputs, another process works in it, or a file
            of `out` is not as written.
    """
    fields = printable(config)
    source = {"config": {name: value for name, value in fields.items() if name not in free}, "inputs": dict(inputs)}
    if count() == 1 or _within.get():
        return _by_itself(out, source, work)
    if alone:
        return main_first(lambda: _by_itself(out, source, work))
    return _together(out, source, work)


def _by_itself(out: Path, source: dict[str, Any], work: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """`run_in_folder` in one process."""
    if out.exists():
        return _finished(out, source)
    partial = _begun(out, source)
    with _alone_in(partial):
        try:
            return _done(partial, out, source, _worked(work, partial))
        except ValueError:
            if {entry.name for entry in partial.iterdir()} == {SOURCE, LOCK}:
                shutil.rmtree(partial)  # nothing was begun, so the corrected command may have the folder
            raise


def _together(out: Path, source: dict[str, Any], work: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """`run_in_folder` in each of several processes."""
    meet()  # all see the same: a stage that is done, or one that nobody has gone on with
    if out.exists():
        return _finished(out, source)
    partial = main_first(lambda: _begun(out, source))
    if rank() == 0:
        with _alone_in(partial):
            meet()  # the others have their copies
            figures = _done(partial, out, source, _worked(work, partial))
        meet()
        return figures
    own = out.with_name(f"{out.name}.{rank()}{PARTIAL}")
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(partial, own, copy_function=_linked)
    meet()
    _worked(work, own)
    shutil.rmtree(own)
    meet()
    return _finished(out, source)


def _linked(source: str, target: str) -> None:
    """Copy a file; one of weights, which may be many gigabytes and is only ever replaced, shares its bytes instead."""
    try:
        if source.endswith(".safetensors"):
            os.link(source, target)
            return
    except OSError:  # a file system that has no links
        pass
    shutil.copy2(source, target)


def _begun(out: Path, source: dict[str, Any]) -> Path:
    """The folder that a stage works in. Raises `ValueError` where it is another's."""
    partial = out.with_name(f"{out.name}{PARTIAL}")
    if (partial / SOURCE).is_file():
        refuse_other(partial, read_json(partial / SOURCE), source)
    elif partial.exists():
        raise ValueError(f"got {partial}, which no stage has begun; remove it or name another folder")
    else:
        begun = out.with_name(f"{out.name}.begun")
        write_json(begun / SOURCE, source)
        begun.rename(partial)
    return partial


@contextmanager
def _alone_in(partial: Path) -> Iterator[None]:
    """Hold the folder against other processes; a kill lets go of it. Raises `ValueError` where one has it."""
    from filelock import FileLock, Timeout  # comes with torch; who only draws has neither

    lock = FileLock(partial / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"got {partial}, in which another process is at work; wait until it is done, or stop it and run this again"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _worked(work: Callable[[Path], Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """The figures that the work comes to, as JSON has them."""
    token = _within.set(True)
    try:
        return json.loads(json.dumps(dict(work(folder))))
    finally:
        _within.reset(token)


def _done(partial: Path, out: Path, source: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Write down what was reached and let the folder be the stage's."""
    write_json(partial / RESULT, {"source": source, "figures": figures, "outputs": hashes_below(partial)})
    (partial / LOCK).unlink()
    partial.rename(out)
    (out / SOURCE).unlink()
    return figures


def _finished(out: Path, source: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a stage that is done. Raises `ValueError` where it is another, or not as it was written."""
    if not (out / RESULT).is_file():
        raise ValueError(f"got {out}, which is no finished stage; remove it or name another folder")
    written = read_json(out / RESULT)
    refuse_other(out, written.get("source"), source)
    refuse_changed(out, written["outputs"])
    return written["figures"]


def printable(config: Any) -> dict[str, Any]:
    """A frozen dataclass as JSON has it: lists for tuples, None for infinities, text for paths."""
    assert is_dataclass(config)
    assert not isinstance(config, type)
    values = {name: None if value == math.inf else value for name, value in asdict(config).items()}
    return json.loads(json.dumps(values, default=str))


def hashes_below(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a stage's folder, by its path there; not of what a kill left half written."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = {file: file.relative_to(folder).as_posix() for file in files}
    return {
        name: hash_of_file(file)
        for file, name in names.items()
        if name not in (RESULT, SOURCE, LOCK)
        and file.name != TIMINGS
        and file.suffix != PARTIAL
        and CURVES not in name.split("/")
    }


def hash_of_file(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_other(folder: Path, there: Any, source: Mapping[str, Any]) -> None:
    """Raise `ValueError`, naming the first difference, unless a folder was made from `source`."""
    there = there if isinstance(there, dict) else {}
    for kind, wanted in source.items():
        held = there.get(kind) or {}
        for name in sorted(wanted.keys() | held.keys()):
            if wanted.get(name) != held.get(name):
                raise ValueError(
                    f"got {folder}, made with {name} {held.get(name)!r}, expected {wanted.get(name)!r}; "
                    "remove it or name another folder"
                )


def refuse_changed(out: Path, outputs: Mapping[str, str]) -> None:
    """Raise `ValueError` unless every file that a stage wrote is still as it was."""
    for name, expected in outputs.items():
        if not (out / name).is_file():
            raise ValueError(
                f"{out / name}: missing, expected what {out / RESULT} lists; remove {out} to make it again"
            )
        if hash_of_file(out / name) != expected:
            raise ValueError(f"{out / name}: changed since it was written; remove {out} to make it again")
