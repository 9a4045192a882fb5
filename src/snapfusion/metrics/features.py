"""What pictures and sentences are turned into before they are compared: vectors of frozen, published networks.

inception   the 2015 Inception-v3 at 299 px, its last pooling: FID, KID, memorisation, judge B
resnet      ResNet-50 at 224 px, its last pooling: judge A
sentences   all-MiniLM-L6-v2, the mean of its token states: both judges

Pictures are resized as clean-fid does it (Parmar et al. 2022, arXiv:2104.11222): bicubic, antialiased, never rounded.
"""

import errno
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel

from snapfusion.metrics.resnet import load_resnet
from snapfusion.metrics.weights import inception_weights, minilm_folder

Images = NDArray[np.uint8]  # [N, H, W, 3]
Vectors = NDArray[np.float32]  # [N, D]
Network = Callable[[Tensor], Tensor]

SENTENCE_TOKENS = 64  # longer prompts are cut


@dataclass(frozen=True)
class Backbone:
    """A frozen image network: `embed` maps uint8 images `[B, H, W, 3]` to vectors `[B, 2048]`."""

    name: str
    embed: Callable[[Images], Vectors]


def load_inception(device: str = "cpu", cache: Path | None = None) -> Backbone:
    """Inception-v3 on "cpu" (run by OpenVINO) or a torch device; `cache` as in `snapfusion.metrics.weights`."""
    network = torch.jit.load(inception_weights(cache), map_location=device).eval()
    return backbone("inception", network, 299, device, lambda image: (image - 128) / 128)


def load_resnet50(device: str = "cpu", cache: Path | None = None) -> Backbone:
    """ResNet-50, otherwise as `load_inception`."""
    means = torch.tensor((103.939, 116.779, 123.68)).view(1, 3, 1, 1)  # of blue, green, red over ImageNet
    return backbone(
        "resnet50", load_resnet(cache).to(device), 224, device, lambda image: image.flip(1) - means.to(image.device)
    )


def backbone(name: str, network: Network, side: int, device: str, normalise: Callable[[Tensor], Tensor]) -> Backbone:
    """A network of images `[B, 3, side, side]`; `normalise` makes its inputs of red, green, blue in 0..255."""
    run = _compile(network, side) if device == "cpu" else network

    @torch.inference_mode()
    def embed(images: Images) -> Vectors:
        image = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
        image = F.interpolate(image, (side, side), mode="bicubic", antialias=True).clamp(0, 255)
        return run(normalise(image).contiguous()).float().cpu().numpy()

    return Backbone(name, embed)


def _compile(network: Network, side: int) -> Network:
    """The network in OpenVINO's float32, nearly twice as fast as torch on a CPU and equal to it to 1e-5."""
    import openvino as ov  # where a GPU computes it need not be there

    model = ov.convert_model(network, example_input=torch.zeros(1, 3, side, side))
    model.reshape([-1, 3, side, side])
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = ov.compile_model(model, "CPU", options)
    return lambda image: torch.from_numpy(compiled(image.numpy())[0])


class VectorStore:
    """A file of vectors by picture, so that no picture goes through a network twice; safe for several processes."""

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._connection = sqlite3.connect(file, timeout=60)
        self._connection.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")

    def __getitem__(self, keys: Sequence[str]) -> list[Vectors | None]:
        """The vector `[D]` of each key, None where there is none yet."""
        query = "SELECT vector FROM vectors WHERE key = ?"
        rows = (self._connection.execute(query, (key,)).fetchone() for key in keys)
        return [None if row is None else np.frombuffer(row[0], dtype=np.float32) for row in rows]

    def add(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Keep a vector for each key."""
        rows = [(key, vector.tobytes()) for key, vector in zip(keys, vectors, strict=True)]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file)) from error


def image_vectors(backbone: Backbone, batches: Iterable[Images], store: VectorStore | None = None) -> Vectors:
    """Vectors of all images of some batches, `[N, 2048]`; with a store, those it has are not computed again."""
    found: list[Vectors] = []
    for images in batches:
        if store is None:
            found.append(backbone.embed(images))
            continue
        keys = [f"{backbone.name}:{hashlib.sha256(image.tobytes()).hexdigest()}" for image in images]
        known = store[keys]
        missing = [index for index, vector in enumerate(known) if vector is None]
        if missing:
            computed = backbone.embed(images[missing])
            store.add([keys[index] for index in missing], computed)
            for index, vector in zip(missing, computed, strict=True):
                known[index] = vector
        found.append(np.stack([vector for vector in known if vector is not None]))
    return np.concatenate(found)


def sentence_vectors(sentences: Sequence[str], store: VectorStore | None = None) -> Vectors:
    """MiniLM's sentence vectors, `[N, 384]`, as sentence-transformers makes them: mean token state, unit length."""
    distinct = list(dict.fromkeys(sentences))
    keys = [f"minilm:{sentence}" for sentence in distinct]
    known = dict(zip(distinct, store[keys] if store is not None else [None] * len(keys), strict=True))
    missing = [sentence for sentence, vector in known.items() if vector is None]
    if missing:
        computed = _embed_sentences(missing)
        if store is not None:
            store.add([f"minilm:{sentence}" for sentence in missing], computed)
        known |= dict(zip(missing, computed, strict=True))
    return np.array([known[sentence] for sentence in sentences])


@torch.inference_mode()
def _embed_sentences(sentences: list[str], batch: int = 64) -> Vectors:
    folder = minilm_folder()
    network = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(SENTENCE_TOKENS)
    tokenizer.enable_padding()
    vectors: list[Tensor] = []
    for start in range(0, len(sentences), batch):
        encodings = tokenizer.encode_batch(sentences[start : start + batch])
        tokens = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        states = network(input_ids=tokens, attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        vectors.append(F.normalize(mean, dim=1))
    return torch.cat(vectors).numpy()
