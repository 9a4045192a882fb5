"""bfloat16 is used where the device has it, and nowhere else."""

from pathlib import Path

import pytest
import torch

from snapfusion import autocast as subject
from snapfusion.autocast import autocast, has_bf16, precision_on

CPU = torch.device("cpu")


def product() -> torch.Tensor:
    matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    return matrix @ matrix


@pytest.mark.parametrize("here", [True, False])
def test_products_are_in_bfloat16_only_where_it_is(monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    monkeypatch.setattr(subject, "has_bf16", lambda device: here)
    with autocast(CPU):
        assert product().dtype == (torch.bfloat16 if here else torch.float32)
    with autocast(CPU, bf16=False):
        assert product().dtype == torch.float32
    assert precision_on(CPU, "bf16") == ("bf16" if here else "no")
    assert precision_on(CPU, "fp16") == "fp16"
    assert precision_on(CPU, "no") == "no"


def test_a_cpu_has_what_its_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    if (flags := Path("/proc/cpuinfo")).exists() and "avx2" in (told := flags.read_text()):
        assert has_bf16(CPU) == ("avx512_bf16" in told or "amx_bf16" in told)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_that_emulates_it_has_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    able = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert not has_bf16(CPU)
    able[name] = True
    assert has_bf16(CPU)
    able |= {name: False, "architecture": "aarch64"}  # where oneDNN knows
    assert has_bf16(CPU)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not has_bf16(CPU)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert not has_bf16(CPU)


@pytest.mark.parametrize("ampere", [True, False])
def test_a_gpu_has_what_it_does_without_emulation(monkeypatch: pytest.MonkeyPatch, ampere: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or ampere)
    assert has_bf16(torch.device("cuda")) is ampere
