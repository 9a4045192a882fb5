"""How many operations a network takes, counted by torch while it runs; it may run on the meta device."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def operations_of(call: Callable[[], object]) -> int:
    """Floating-point operations of a call without gradients: convolutions and matrix products, attention's two too.

    A multiply-accumulate is two of them. torch counts attention only where it is written out in matrix products.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
