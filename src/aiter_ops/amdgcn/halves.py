"""fp16 to fp32 and back, as a few passes over whole arrays: NumPy converts one number at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_UP = np.float32(2.0**112)
"""From the exponents of fp16 to those of fp32, once the bits are in place."""


def widened(x: Any) -> NDArray[np.float32]:
    """fp16 to fp32, exact. The bits of a NaN may change."""
    bits = np.ascontiguousarray(x).view(np.uint16).astype(np.uint32)
    placed = bits & np.uint32(0x7FFF)
    largest = placed.max(initial=0)
    placed <<= np.uint32(13)
    out = placed.view(np.float32)
    out *= _UP
    if largest >= 0x7C00:
        over = (bits & np.uint32(0x7C00)) == 0x7C00
        special = np.where(bits & np.uint32(0x03FF), np.float32(np.nan), np.float32(np.inf))
        out = np.where(over, special, out)
    bits &= np.uint32(0x8000)
    bits <<= np.uint32(16)
    bits |= out.view(np.uint32)
    return bits.view(np.float32)


def narrowed(x: NDArray[np.float32]) -> NDArray[np.float16]:
    """fp32 to fp16, to nearest even; beyond the range infinities. The bits of a NaN may change."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    half = size >> np.uint32(13)
    half &= np.uint32(1)
    half += size
    half += np.uint32(0xFFF)
    half -= np.uint32(0x38000000)
    half >>= np.uint32(13)
    if size.min(initial=1 << 31) < 0x38800000:
        # below the normal range: beside 0.5 the last bit of fp32 is that of fp16's denormal numbers
        small = (size.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000)
        np.copyto(half, small, where=size < 0x38800000)
    if size.max(initial=0) >= 0x477FF000:
        np.copyto(half, np.uint32(0x7C00), where=size >= 0x477FF000)
        np.copyto(half, np.uint32(0x7E00), where=size > 0x7F800000)
    size = bits >> np.uint32(16)
    size &= np.uint32(0x8000)
    half |= size
    return half.astype(np.uint16).view(np.float16)
