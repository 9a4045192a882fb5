"""torch: a module to a callable on arrays, in float32. The reference that every other runtime is held against."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class Network:
    """A module with one output, called with arrays by the names of its arguments."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
