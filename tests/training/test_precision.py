"""bfloat16 where the device has it, float32 where it would be emulated."""

import pytest
import torch

from realcustom.training.precision import quick_precision


@pytest.mark.parametrize(
    ("found", "precision"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False, "cpu_name": "one bf16"}, "no"),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"avx2": True, "num_physical_cores": 2}, "no"),
    ],
)
def test_a_cpu_without_bfloat16_computes_in_float32(monkeypatch, found, precision):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert quick_precision() == precision


def test_an_accelerator_computes_in_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert quick_precision() == "bf16"


def test_an_older_torch_that_does_not_tell_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert quick_precision() == "no"
