import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from snapfusion.metrics.features import VectorStore, backbone, image_vectors, load_inception, sentence_vectors
from snapfusion.metrics.resnet import ResNet50


class FirstPixels(nn.Module):
    """Puts out its inputs, flattened: what a network is given can be read off."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", [28, 12])
def test_images_are_resized_as_pillow_does_it_in_floats(images: np.ndarray, side: int) -> None:
    network = backbone("pixels", FirstPixels(), side, "cpu", lambda image: image)
    channels = [Image.fromarray(images[0, ..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(c.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 255) for c in channels]
    np.testing.assert_allclose(network.embed(images)[0].reshape(3, side, side), resized, atol=0.02)


def test_openvino_and_torch_put_out_the_same(images: np.ndarray) -> None:
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten()).eval()
    fast = backbone("small", convolutions, 16, "cpu", lambda image: image / 255).embed(images)
    pictures = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2).float(), (16, 16), mode="bicubic", antialias=True
    )
    with torch.inference_mode():
        expected = convolutions(pictures.clamp(0, 255) / 255)
    np.testing.assert_allclose(fast, expected.numpy(), atol=1e-5)
    assert fast.dtype == np.float32


def test_inception_is_given_its_own_scale(images: np.ndarray, tmp_path: Path) -> None:
    class Corner(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[:, :, 0, 0]

    torch.jit.script(Corner()).save(str(tmp_path / "inception_2015.pt"))
    flat = np.broadcast_to(np.array([0, 128, 255], dtype=np.uint8), (1, 8, 8, 3)).copy()
    vector = load_inception(cache=tmp_path).embed(flat)[0]
    np.testing.assert_allclose(vector, [-1, 0, 127 / 128], atol=1e-6)


def test_resnet_strides_and_widths_are_those_of_resnet_50() -> None:
    with torch.device("meta"):
        network = ResNet50()
        out = network(torch.empty(2, 3, 224, 224))
    assert out.shape == (2, 2048)
    # ResNet-50 has 23,508,032 parameters before its classifier, 2 x 26,560 of them in batch norms, which here have
    # become the biases of the 26,560 channels.
    assert sum(p.numel() for p in network.parameters()) == 23_508_032 - 26_560
    stages = {name[:4]: module.branch2a.stride for name, module in network.blocks.items() if name.endswith("a")}
    assert stages == {"res2": (1, 1), "res3": (2, 2), "res4": (2, 2), "res5": (2, 2)}


def test_no_picture_goes_through_a_network_twice(images: np.ndarray, tmp_path: Path) -> None:
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(len(image))
            return image.mean(dim=(2, 3))

    # A device other than "cpu" is not compiled, so that every call is counted.
    network = backbone("counting", Counting(), 8, "cpu:0", lambda image: image)
    store = VectorStore(tmp_path / "deep" / "vectors.sqlite")
    first = image_vectors(network, [images[:2]], store)
    # Another process opens the file: picture 2 is new, 1 and 0 are known.
    again = image_vectors(network, [images[[1, 2]], images[:1]], VectorStore(tmp_path / "deep" / "vectors.sqlite"))
    assert seen == [2, 1]
    np.testing.assert_array_equal(again[[2, 0]], first)


def test_vectors_of_another_network_are_not_taken(images: np.ndarray, tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "vectors.sqlite")
    a = backbone("a", FirstPixels(), 4, "cpu", lambda image: image)
    b = backbone("b", FirstPixels(), 4, "cpu", lambda image: -image)
    np.testing.assert_allclose(image_vectors(a, [images], store), -image_vectors(b, [images], store))


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "vectors.sqlite")
    store._connection.execute("PRAGMA max_page_count = 3")
    with pytest.raises(OSError, match="No space left on device") as told:
        store.add(["a"], np.zeros((1, 20_000), np.float32))
    assert told.value.errno == errno.ENOSPC
    assert store[["a"]] == [None]


def test_sentence_vectors_are_unit_and_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "vectors.sqlite")
    long = "a very large and friendly dog that sits in the grass, 3D render"
    vectors = sentence_vectors(["a fox", long, "a fox", "a pickup truck"], store)
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(sentence_vectors(["a fox"])[0], vectors[0], atol=1e-5)
    np.testing.assert_array_equal(sentence_vectors(["a fox"], store)[0], vectors[0])
    similarity = sentence_vectors(["a red fox", "a vixen", "a pickup truck"]) @ vectors[0]
    assert similarity[0] > similarity[1] > similarity[2]
