"""Does a model draw its training pictures again? Nearest real pictures by the cosine of their Inception vectors."""

import numpy as np
from numpy.typing import NDArray


def nearest(
    vectors: NDArray[np.float32], real: NDArray[np.float32], block: int = 1024
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Row of the nearest real picture and the cosine to it: `[N, D]` among real `[M, D]` -> `[N]` and `[N]`.

    `block` pictures are compared at a time, which bounds the memory.
    """
    unit = real / np.linalg.norm(real, axis=1, keepdims=True)
    rows: list[NDArray[np.int64]] = []
    cosines: list[NDArray[np.float32]] = []
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block]
        cosine = (part / np.linalg.norm(part, axis=1, keepdims=True)) @ unit.T
        rows.append(cosine.argmax(axis=1))
        cosines.append(cosine.max(axis=1))
    return np.concatenate(rows), np.concatenate(cosines)
