"""Weights of one network in a folder: safetensors in and out, never a pickle.

Read: float16, bfloat16 or float32; one file or shards with an index, plain or of a variant as diffusers names them
(`.fp16`). Written: one file.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from snapfusion.json_file import read_json
from snapfusion.processes import rank

Network = TypeVar("Network", bound=nn.Module)

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CODES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}  # as safetensors names them
VARIANTS = ("", "fp16", "bf16", "fp32")


def read_weights(folder: Path, stem: str) -> dict[str, Tensor]:
    """The weights in `folder/stem.safetensors` or its shards, as float32. Raises `ValueError` where there are none."""
    return {name: tensor for file in files_of(folder, stem) for name, tensor in read_tensors(file)}


def read_tensors(file: Path, unread: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a safetensors file but for those `unread`, as float32.

    One by one: no more than one is in memory twice. Numbers that are no weights are left out: the position tables of
    old files, which the networks make themselves.
    """
    with open_tensors(file) as opened:
        for name in opened.offset_keys():
            if name in unread:
                continue
            tensor = opened.get_tensor(name)
            if not tensor.is_floating_point():
                continue
            if tensor.dtype not in DTYPES:
                raise ValueError(f"{file}: {name}: got {tensor.dtype}, expected float16, bfloat16 or float32")
            yield name, tensor.to(torch.float32)


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """A safetensors file, read and not mapped: pages of a mapped file count as memory until it is closed.

    Raises `ValueError` where it is none, or not whole.
    """
    try:
        with safe_open(file, framework="pt", backend="pread") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(f"{file}: expected a whole safetensors file ({error}); fetch it again") from error


def widest_dtype(files: Iterable[Path]) -> torch.dtype:
    """The type that holds all weights of some safetensors files without loss."""
    codes: set[str] = set()
    for file in files:
        with open_tensors(file) as opened:
            codes |= {opened.get_slice(name).get_dtype() for name in opened.offset_keys()}
    return reduce(torch.promote_types, [CODES[code] for code in sorted(codes & set(CODES))], torch.float16)


def fill(
    network: Network, weights: Mapping[str, Tensor], source: Path, name_there: Callable[[str], str] = str
) -> Network:
    """Put `weights` into `network`, whose parameters may be on the meta device, and set it to evaluation.

    Raises `ValueError` unless names and shapes are the same on both sides. `source` says where the weights are from,
    `name_there` what a weight is called there.
    """
    places = network.state_dict()
    for name, place in places.items():
        if name not in weights:
            expected = f"expected one of shape {list(place.shape)}"
            raise ValueError(f"{source}: {name_there(name)}: got no such weight, {expected}")
        if weights[name].shape != place.shape:
            got, expected = list(weights[name].shape), list(place.shape)
            raise ValueError(f"{source}: {name_there(name)}: got shape {got}, expected {expected}")
    if strangers := sorted(set(weights) - set(places)):
        expected = f"none of that name in a {type(network).__name__} of this config.json"
        raise ValueError(f"{source}: {strangers[0]}: got a weight ({len(strangers)} such in all), expected {expected}")
    network.load_state_dict(weights, assign=True)
    return network.eval()


def write_weights(
    weights: Mapping[str, Tensor], file: Path, dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `weights` to `file` as `dtype`. Raises `ValueError` where they are not finite, or too large for `dtype`."""
    if dtype not in DTYPES:
        raise ValueError(f"got {dtype}, expected float16, bfloat16 or float32")
    stored = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in weights.items()}
    for name, weight in stored.items():
        if not weight.isfinite().all():
            raise ValueError(f"{file}: {name}: got values that are not finite as {dtype}, expected finite weights")
    save_whole(stored, file, metadata or {"format": "pt"})


def save_whole(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file and its folder: whole or not at all. Raises `OSError` where the disk takes no more."""
    partial = file.with_name(f"{file.name}{f'.{rank()}' if rank() else ''}.partial")  # others may write the same
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(dict(tensors), partial, dict(metadata))
        partial.replace(file)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
    finally:
        partial.unlink(missing_ok=True)


def load_whole(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file that `save_whole` wrote. Raises `ValueError` where it is not as it was written."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: expected a whole safetensors file ({error}); remove it and run again") from error


def files_of(folder: Path, stem: str) -> list[Path]:
    """The files that hold a network's weights, full precision first. Raises `ValueError` where there are none."""
    for variant in VARIANTS:
        tail = variant and f".{variant}"
        file = folder / f"{stem}{tail}.safetensors"
        if file.is_file():
            return [file]
        index = folder / f"{stem}.safetensors.index{tail}.json"
        if index.is_file():
            return _shards(index)
    found = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if pickles := [name for name in found if Path(name).suffix in PICKLES]:
        raise ValueError(
            f"{folder}: got {pickles[0]}, expected {stem}.safetensors: a pickle can run code when it is opened; "
            "have diffusers save the checkpoint with safe_serialization=True on a machine where that may happen"
        )
    raise ValueError(f"{folder}: got {found or 'nothing'}, expected {stem}.safetensors")


def variant_of(folder: Path, stem: str) -> str | None:
    """What diffusers calls the files of `files_of`: "fp16" where there are only those, None for full precision."""
    (name, *_) = (file.name for file in files_of(folder, stem))
    return next((variant for variant in VARIANTS[1:] if f".{variant}" in name), None)


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names:
        raise ValueError(f"{index}: got no weight_map, expected names of weights with the files that hold them")
    for name in names:
        # A plain name: an index from elsewhere must not lead to another folder.
        if Path(name).name != name or not name.endswith(".safetensors") or not (index.parent / name).is_file():
            raise ValueError(f"{index}: got shard {name!r}, expected a .safetensors file beside the index")
    return [index.parent / name for name in names]
