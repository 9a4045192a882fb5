import json
import os
import pickle

import numpy as np
import pytest

from snapfusion.metrics.formats import read_pickled_arrays, read_tfjs_layers


def test_a_nested_dict_of_arrays_is_flattened() -> None:
    kernel, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3)
    arrays = read_pickled_arrays(pickle.dumps({"Conv_0": {"kernel": kernel, "bias": bias}, "scale": bias}))
    assert list(arrays) == ["Conv_0.kernel", "Conv_0.bias", "scale"]
    np.testing.assert_array_equal(arrays["Conv_0.kernel"], kernel)


@pytest.mark.parametrize("value", [os.system, np.load, print, np.float64(1), {"a": {1, 2}}])
def test_a_pickle_that_names_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"do not trust this file|not a file of weights"):
        read_pickled_arrays(pickle.dumps({"kernel": value}))


def test_code_in_a_pickle_does_not_run(tmp_path: object) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return os.mkdir, (f"{tmp_path}/made",)

    with pytest.raises(ValueError, match="mkdir"):
        read_pickled_arrays(pickle.dumps({"kernel": Attack()}))
    assert not os.path.exists(f"{tmp_path}/made")


def manifest(*entries: dict) -> bytes:
    return json.dumps({"weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": list(entries)}]}).encode()


def test_weights_are_read_across_shards() -> None:
    values = np.arange(8, dtype="<f4")
    shards = {"a.bin": values.tobytes()[:13], "b.bin": values.tobytes()[13:]}
    entries = (
        {"name": "conv/kernel", "shape": [2, 3], "dtype": "float32"},
        {"name": "conv/bias", "shape": [2], "dtype": "float32"},
    )
    arrays = read_tfjs_layers(manifest(*entries), shards.__getitem__)
    np.testing.assert_array_equal(arrays["conv/kernel"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(arrays["conv/bias"], [6, 7])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"name": "w", "shape": [4], "dtype": "uint8"}, "got uint8"),
        ({"name": "w", "shape": [4], "dtype": "float32", "quantization": {"scale": 1}}, "plain float32"),
        ({"name": "w", "shape": [3], "dtype": "float32"}, "got 16 bytes of shards, expected 12"),
    ],
)
def test_weights_of_another_kind_or_length_are_refused(entry: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_tfjs_layers(manifest(entry), {"a.bin": bytes(16), "b.bin": b""}.__getitem__)
