"""The precision that networks compute in. What they take and give, and all that a walk does with it, is float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["32-true", "bf16-mixed"]
"""As Lightning Fabric names them: all in float32, or convolutions and products of matrices in bfloat16."""


def precision_of(name: Precision | Literal["auto"], device: torch.device) -> Precision:
    """Give the precision that is meant: auto is bfloat16 where the device computes in it, and is faster for it.

    That is CUDA, and a CPU with AMX or AVX-512 BF16; others emulate it, slower than float32 (`benchmarks/unet.py`).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16-mixed"
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16-mixed" if able.get("amx_bf16") or able.get("avx512_bf16") else "32-true"


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Give the context in which networks compute in a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def wide(values: Tensor) -> Tensor:
    """Give `values` in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
