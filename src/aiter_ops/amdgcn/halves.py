"""fp16 to fp32 and back, as a few passes over whole arrays: NumPy converts one number at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32, U32 = NDArray[np.float32], NDArray[np.uint32]

_UP = np.float32(2.0**112)
"""From the exponents of fp16 to those of fp32, once the bits are in place."""
_KEPT = np.int32(-0x70002000)
"""0x8FFFE000: sign, exponent and fraction of an fp16 number, three places below the upper half of a word."""
_OVER = np.float32(65536)
"""What the largest exponent of fp16, that of infinities and NaN, would be as a number."""


def upper(words: Any) -> F32:
    """The upper halves of 32-bit words, fp16 numbers, as fp32, exact. The bits of a NaN may change."""
    placed = np.right_shift(words.view(np.int32), 3)
    placed &= _KEPT
    out = placed.view(np.float32)
    out *= _UP
    if out.max(initial=0) >= _OVER or out.min(initial=0) <= -_OVER:
        special = np.where(np.abs(out) > _OVER, np.float32(np.nan), np.copysign(np.float32(np.inf), out))
        out = np.where(np.abs(out) >= _OVER, special, out)
    return np.asarray(out)


def lower(words: Any) -> F32:
    """The lower halves, so."""
    return upper(np.left_shift(words, np.uint32(16)))


def widened(x: Any) -> F32:
    """fp16 to fp32, exact. The bits of a NaN may change."""
    placed = np.ascontiguousarray(x).view(np.uint16).astype(np.uint32)
    placed <<= np.uint32(16)
    return upper(placed)


def half_bits(x: F32) -> U32:
    """fp32 to the bits of fp16, to nearest even; beyond the range infinities. The bits of a NaN may change."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    half = bits >> np.uint32(13)
    half &= np.uint32(1)
    half += size
    # rounds the fraction, and takes the exponent from the bias of fp32 to that of fp16
    half += np.uint32((0xFFF - 0x38000000) & 0xFFFFFFFF)
    half >>= np.uint32(13)
    if size.min(initial=1 << 31) < 0x38800000:
        # below the normal range: beside 0.5 the last bit of fp32 is that of fp16's denormal numbers
        small = size.view(np.float32) + np.float32(0.5)
        small_bits = small.view(np.uint32)
        small_bits -= np.uint32(0x3F000000)
        np.copyto(half, small_bits, where=size < 0x38800000)
    if size.max(initial=0) >= 0x477FF000:
        np.copyto(half, np.uint32(0x7C00), where=size >= 0x477FF000)
        np.copyto(half, np.uint32(0x7E00), where=size > 0x7F800000)
    np.right_shift(bits, np.uint32(16), out=size)
    size &= np.uint32(0x8000)
    half |= size
    return np.asarray(half)


def narrowed(x: F32) -> NDArray[np.float16]:
    """fp32 to fp16, so."""
    return half_bits(x).astype(np.uint16).view(np.float16)
