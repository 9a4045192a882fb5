"""Readers for the two foreign weight formats: flax pickles (without running any code) and TensorFlow.js shards."""

import io
import json
import pickle
from collections.abc import Callable, Mapping

import numpy as np
from numpy._core.multiarray import _reconstruct  # pyright: ignore[reportAttributeAccessIssue]

# The only names that a pickled dict of arrays needs. Each of them builds an array and none can call anything else.
_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> object:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise ValueError(
                f"got a pickle that names {module_name}.{global_name}, expected arrays only; do not trust this file"
            ) from None


def read_pickled_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Flattens a pickled nested dict of NumPy arrays to `{"outer.inner": array}`.

    Raises:
        ValueError: the pickle names anything but the constructors of NumPy arrays, or holds another kind of leaf.
    """
    return dict(_flatten(_ArrayUnpickler(io.BytesIO(data)).load(), ""))


def _flatten(node: object, prefix: str) -> list[tuple[str, np.ndarray]]:
    if isinstance(node, Mapping):
        return [
            leaf for key, child in node.items() for leaf in _flatten(child, f"{prefix}.{key}" if prefix else str(key))
        ]
    if not isinstance(node, np.ndarray):
        raise ValueError(
            f"got {type(node).__name__} at {prefix!r}, expected a NumPy array; this is not a file of weights"
        )
    return [(prefix, node)]


def read_tfjs_layers(model_json: bytes, read_shard: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    """Reads the float32 weights of a TensorFlow.js layers model as `{name: array}`, in the layout TensorFlow stores.

    Args:
        model_json: the model's `model.json`.
        read_shard: gives the bytes of a shard by the relative path that `model.json` names.

    Raises:
        ValueError: quantised or non-float32 weights, or shards of the wrong total length.
    """
    arrays: dict[str, np.ndarray] = {}
    for group in json.loads(model_json)["weightsManifest"]:
        data = b"".join(read_shard(path) for path in group["paths"])
        offset = 0
        for entry in group["weights"]:
            if entry["dtype"] != "float32" or "quantization" in entry:
                raise ValueError(f"got {entry['dtype']} for {entry['name']!r}, expected plain float32 weights")
            size = int(np.prod(entry["shape"]))
            arrays[entry["name"]] = np.frombuffer(data, "<f4", size, offset).reshape(entry["shape"])
            offset += 4 * size
        if offset != len(data):
            raise ValueError(f"got {len(data)} bytes of shards, expected {offset}; fetch the package again")
    return arrays
