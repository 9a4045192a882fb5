"""bfloat16 where the device is made for it, float32 where it only pretends to.

On a CPU of AVX2 alone a matrix multiplication in bfloat16 is some four hundred times slower than in float32
(docs/log.md). So "bf16" means, wherever a person or a stage asks for it: if it is no slower.
"""

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is worth asking a device for: a GPU that has it, a CPU with instructions that oneDNN uses."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        known = torch.backends.mkldnn.is_available()  # not on every Mac
        able = torch.cpu.get_capabilities()
        # oneDNN's word alone is not enough: on x86 it has bfloat16 from AVX-512 on, which mostly emulates it.
        made_for = able["architecture"] != "x86_64" or able["avx512_bf16"] or able["amx_bf16"]
        return known and made_for and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return True  # another device knows best


def autocast(device: torch.device, bf16: bool = True) -> torch.autocast:
    """Mixed precision for what is called inside: bfloat16 if it is wanted and `device` has it, else as it is."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and has_bf16(device))


def precision_on(device: torch.device, precision: str) -> str:
    """What accelerate is told of "no", "bf16" or "fp16": as wanted, or "no" for a bfloat16 that `device` has not."""
    return "no" if precision == "bf16" and not has_bf16(device) else precision
