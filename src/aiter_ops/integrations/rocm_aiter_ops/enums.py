"""The numbers that vLLM hands through its schemas for AITER's enums; AITER is not asked for them."""

from __future__ import annotations

from enum import IntEnum


class ActivationType(IntEnum):
    """AITER's numbers (aiter/ops/enum.py; Swiglu since 0.1.7, Situv2 since 0.1.19)."""

    No = -1
    Silu = 0
    Gelu = 1
    Swiglu = 2
    Situv2 = 3


class QuantType(IntEnum):
    """AITER's numbers (aiter/ops/enum.py)."""

    No = 0
    per_Tensor = 1
    per_Token = 2
    per_1x32 = 3
    per_1x128 = 4
    per_128x128 = 5


ACTIVATIONS = {
    "no": ActivationType.No,
    "none": ActivationType.No,
    "silu": ActivationType.Silu,
    "gelu": ActivationType.Gelu,
    "swiglu": ActivationType.Swiglu,
    "situ": ActivationType.Situv2,
}
QUANTS = {
    "no": QuantType.No,
    "per_tensor": QuantType.per_Tensor,
    "per_token": QuantType.per_Token,
    "per_1x32": QuantType.per_1x32,
    "per_1x128": QuantType.per_1x128,
    "per_128x128": QuantType.per_128x128,
}
"""What vLLM's texts stand for."""
