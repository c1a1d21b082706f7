"""Rotary embedding and paged caches by definition, one number at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def turned(head: np.ndarray, angles: Sequence[float], neox: bool, first: int = 0) -> np.ndarray:
    """One head [D] with pairs of the columns from `first` on turned, as complex numbers, by angles [R/2]."""
    out = head.astype(np.float64).copy()
    half = len(angles)
    for j, angle in enumerate(angles):
        a, b = (first + j, first + j + half) if neox else (first + 2 * j, first + 2 * j + 1)
        z = complex(out[a], out[b]) * complex(math.cos(angle), math.sin(angle))
        out[a], out[b] = z.real, z.imag
    return out


def axis_of(pair: int, section: Sequence[int], interleaved: bool) -> int:
    """Which of three positions turns a pair, from how many pairs each has."""
    if not interleaved:
        ends = np.cumsum(section)
        return int(np.searchsorted(ends, pair, side="right"))
    for axis in (1, 2):
        if pair in range(axis, 3 * section[axis], 3):
            return axis
    return 0


def normed(head: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm of one head."""
    x = head.astype(np.float64)
    return x / math.sqrt(float((x * x).mean()) + eps) * weight.astype(np.float64)


def nearest_code(value: float, codes: np.ndarray) -> int:
    """The FP8 code (0-255) of a value: nearest, ties to the even code, cut at the largest; NaN's first code.

    codes: what the 256 codes mean, NaN where they mean none.
    """
    finite = [c for c in range(256) if not math.isnan(codes[c])]
    if math.isnan(value):
        return next(c for c in range(256) if math.isnan(codes[c]))
    top = max(codes[c] for c in finite)
    value = min(max(value, -top), top)
    distance = {c: abs(codes[c] - value) for c in finite}
    least = min(distance.values())
    near = [c for c in finite if distance[c] == least]
    signed = [c for c in near if (c >= 128) == (math.copysign(1.0, value) < 0)] or near
    return min(signed, key=lambda c: (c % 2, c))


def places(slots: Sequence[int], size: int) -> list[tuple[int, int, int]]:
    """(token, block, place) of the tokens that have a slot."""
    return [(t, *divmod(s, size)) for t, s in enumerate(slots) if s >= 0]
