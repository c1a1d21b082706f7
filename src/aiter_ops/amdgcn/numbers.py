"""Arithmetic with one rounding, and conversions, as functions of NumPy arrays.

fp32 fused multiply-add: the product of two fp32 numbers is exact in fp64; the sum with the third is rounded to odd
(Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008:
53 bits are at least 24 + 2), so that rounding it to fp32 rounds the exact value once.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .halves import narrowed

F32, F64 = NDArray[np.float32], NDArray[np.float64]


def sum_to_odd(p: F64, c: F64) -> F64:
    """p + c in fp64, rounded to odd: the neighbour of an inexact sum whose last bit is 1."""
    s = p + c
    t = s - p
    error = (p - (s - t)) + (c - t)
    inexact = (error != 0) & np.isfinite(s)
    if not inexact.any():
        return s
    bits = s.view(np.int64)
    step = np.where((error > 0) == (s > 0), 1, -1)
    even = (bits & 1) == 0
    return np.asarray(np.where(inexact & even, bits + step, bits).view(np.float64))


def add_to_f32(p: F64, c: F32) -> F32:
    """p + c, rounded once to fp32. The fp64 sum says how to round, but where it lies halfway between two fp32 numbers or
    below their normal range.
    """
    s = p + c
    doubtful = ((s.view(np.int64) & 0x1FFFFFFF) == 0x10000000) | ((np.abs(s) < 2.0**-126) & (s != 0))
    if doubtful.any():
        s = sum_to_odd(
            np.broadcast_to(p, s.shape), np.ascontiguousarray(np.broadcast_to(c.astype(np.float64), s.shape))
        )
    return np.asarray(s.astype(np.float32))


def fma32(a: F32, b: F32, c: F32) -> F32:
    """a · b + c, rounded once: the product is exact in fp64, and the fp64 sum says how to round but where it lies halfway
    between two fp32 numbers or the result is below their normal range (or the smallest of it).
    """
    shape = np.broadcast_shapes(a.shape, b.shape, c.shape)
    p, total, low, size, doubtful, small = _scratch.of(shape)
    np.multiply(a, b, out=p, dtype=np.float64)
    np.add(p, c, out=total)
    out = total.astype(np.float32)
    np.bitwise_and(total.view(np.int64), 0x1FFFFFFF, out=low)
    np.equal(low, 0x10000000, out=doubtful)
    np.left_shift(out.view(np.uint32), np.uint32(1), out=size)
    size -= np.uint32(1)
    np.less_equal(size, np.uint32(0x01000000), out=small)
    doubtful |= small
    if doubtful.any():
        third = np.broadcast_to(c, shape)[doubtful].astype(np.float64)
        out[doubtful] = sum_to_odd(p[doubtful], third).astype(np.float32)
    return np.asarray(out)


class _Scratch(threading.local):
    """Arrays for what is thrown away again, kept by shape: fresh ones of this size cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, ...], tuple[Any, ...]] = {}

    def of(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """Two of fp64, one each of 64- and 32-bit integers, two of booleans."""
        made = self.held.get(shape)
        if made is None:
            if len(self.held) >= 16:
                self.held.clear()
            kinds = (np.float64, np.float64, np.int64, np.uint32, np.bool_, np.bool_)
            made = self.held[shape] = tuple(np.empty(shape, kind) for kind in kinds)
        return made


_scratch = _Scratch()


def fma16(a: Any, b: Any, c: Any) -> Any:
    """fp16, or fp32 and fp16 mixed, to fp16 with one rounding: fp64 holds the products exactly."""
    a64, b64, c64 = np.broadcast_arrays(a.astype(np.float64), b.astype(np.float64), c.astype(np.float64))
    return sum_to_odd(a64 * b64, np.ascontiguousarray(c64)).astype(np.float16)


def _signalling(bits: NDArray[np.uint32]) -> NDArray[np.bool_]:
    return ((bits & 0x7FFFFFFF) > 0x7F800000) & ((bits & 0x00400000) == 0)


def _extreme(a: F32, b: F32, largest: bool) -> F32:
    """IEEE mode: a signalling NaN comes back quiet, a quiet one gives the other operand, and -0 is below +0."""
    out = (np.fmax if largest else np.fmin)(a, b)
    zeros = out == 0
    nan = np.isnan(np.maximum(a, b)).any()
    if not nan and not zeros.any():
        return np.asarray(out)
    a, b = np.broadcast_arrays(a, b)
    bits_a, bits_b = (np.ascontiguousarray(x).view(np.uint32) for x in (a, b))
    zeros &= (a == 0) & (b == 0)
    if zeros.any():
        joined = bits_a & bits_b if largest else bits_a | bits_b
        out = np.where(zeros, joined.view(np.float32), out)
    for bits in (bits_b, bits_a) if nan else ():
        if (bad := _signalling(bits)).any():
            out = np.where(bad, (bits | np.uint32(0x00400000)).view(np.float32), out)
    return np.asarray(out)


def max32(a: F32, b: F32) -> F32:
    return _extreme(a, b, True)


def min32(a: F32, b: F32) -> F32:
    return _extreme(a, b, False)


def med32(a: F32, b: F32, c: F32) -> F32:
    """The middle one of three; with a NaN among them, the least."""
    nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    largest = max32(max32(a, b), c)
    other = np.where(largest == a, max32(b, c), np.where(largest == b, max32(a, c), max32(a, b)))
    return np.asarray(np.where(nan, min32(min32(a, b), c), other))


def _outermost(a: F32, b: F32, largest: bool) -> F32:
    """IEEE 754-2019: a NaN gives a quiet NaN, and -0 is below +0."""
    nan = np.isnan(a) | np.isnan(b)
    return np.asarray(np.where(nan, np.float32(np.nan), _extreme(a, b, largest)))


def maximum3(a: F32, b: F32, c: F32) -> F32:
    return _outermost(_outermost(a, b, True), c, True)


def minimum3(a: F32, b: F32, c: F32) -> F32:
    return _outermost(_outermost(a, b, False), c, False)


def mad32(a: F32, b: F32, c: F32) -> F32:
    """a · b + c of CDNA2, rounded twice; denormal arguments and results are zeros whatever MODE says."""
    return flush(flush(flush(a) * flush(b)) + flush(c))


def flush(x: F32) -> F32:
    """Denormal numbers to zeros of their sign."""
    size = np.ascontiguousarray(x).view(np.uint32) << np.uint32(1)
    size -= np.uint32(1)
    if not (size < np.uint32(0x00FFFFFF)).any():
        return np.asarray(x)
    return np.asarray(np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x))


def _rounded(function: Any, x: F32) -> F32:
    """A function of fp32, in fp64 and in place, rounded to fp32; its denormal arguments and results are zeros."""
    wide, *_ = _scratch.of(x.shape)
    np.copyto(wide, flush(x))
    function(wide, out=wide)
    return flush(wide.astype(np.float32))


def exp2(x: F32) -> F32:
    return _rounded(np.exp2, x)


def log2(x: F32) -> F32:
    return _rounded(np.log2, x)


def sqrt(x: F32) -> F32:
    return _rounded(np.sqrt, x)


def rsqrt(x: F32) -> F32:
    return _rounded(lambda y, out: np.divide(1.0, np.sqrt(y, out=out), out=out), x)


def reciprocal(x: F32) -> F32:
    """IEEE, with denormal arguments and results."""
    wide, *_ = _scratch.of(x.shape)
    np.copyto(wide, x)
    return np.asarray(np.divide(1.0, wide, out=wide).astype(np.float32))


def to_half(x: F32, clamp_overflow: bool) -> NDArray[np.float16]:
    """fp32 (or fp64) to fp16, to nearest even; finite numbers beyond the range become the largest one where MODE says so."""
    out = narrowed(x) if x.dtype == np.float32 else x.astype(np.float16)
    if clamp_overflow:
        over = np.isinf(out) & np.isfinite(x)
        out = np.where(over, np.copysign(np.float16(65504), out), out).astype(np.float16)
    return np.asarray(out)


def clamped_half(out: Any, *inputs: Any) -> Any:
    """FP16_OVFL: an fp16 result that overflowed is the largest number; infinities that came in stay."""
    over = np.isinf(out)
    if not over.any():
        return out
    for x in inputs:
        over = over & np.isfinite(x)
    return np.where(over, np.copysign(np.float16(65504), out), out).astype(np.float16)


# --- division (steps of the compiler's fp32 quotient) ------------------------------------------------------------------


def _exponent(x: F32) -> NDArray[np.int64]:
    """The exponent field."""
    return np.asarray(((np.ascontiguousarray(x).view(np.uint32) >> 23) & 255).astype(np.int64))


def _denormal(x: Any, smallest: float) -> NDArray[np.bool_]:
    return np.asarray((x != 0) & (np.abs(x) < smallest))


def div_scale(value: F32, denominator: F32, numerator: F32) -> tuple[F32, NDArray[np.bool_]]:
    """Of the denominator or numerator (`value` is one of them): scaled so that the steps neither overflow nor lose
    bits; and whether v_div_fmas must scale back. Where quotient and reciprocal are both denormal the published pseudocode
    scales the denominator up, which overflows; down is what makes the steps come out.
    """
    value, d, n = np.broadcast_arrays(value, denominator, numerator)
    with_d, with_n = value.view(np.uint32) == d.view(np.uint32), value.view(np.uint32) == n.view(np.uint32)
    up, down = (np.ldexp(value.astype(np.float64), k).astype(np.float32) for k in (64, -64))
    inverse = 1.0 / d.astype(np.float64)
    small_inverse = _denormal(inverse, 2.0**-1022) | _denormal(inverse, 2.0**-126)
    small_quotient = _denormal(n.astype(np.float64) * inverse, 2.0**-126)
    conditions = [
        (d == 0) | (n == 0),
        _exponent(n) - _exponent(d) >= 96,
        _denormal(d, 2.0**-126),
        small_inverse & small_quotient,
        small_inverse,
        small_quotient,
        _exponent(n) <= 23,
    ]
    nan = np.full(value.shape, np.nan, np.float32)
    results = [
        nan,
        np.where(with_d, up, value),
        up,
        np.where(with_d, down, value),
        down,
        np.where(with_n, up, value),
        up,
    ]
    scale = np.select(conditions, [np.False_, np.True_, np.False_, np.True_, np.False_, np.True_, np.False_], np.False_)
    return np.select(conditions, results, value).astype(np.float32), scale


def div_fmas(a: F32, b: F32, c: F32, scale: NDArray[np.bool_]) -> F32:
    """a · b + c, scaled back where `scale`: up by 2^64 for a scaled denominator, down for a scaled numerator, told
    apart by the size of c, the quotient so far.
    """
    plain = fma32(a, b, c)
    if not scale.any():
        return plain
    a64, b64, c64 = np.broadcast_arrays(a.astype(np.float64), b.astype(np.float64), c.astype(np.float64))
    odd = sum_to_odd(a64 * b64, np.ascontiguousarray(c64))
    scaled = np.where(_exponent(np.ascontiguousarray(c64.astype(np.float32))) > 127, odd * 2.0**64, odd * 2.0**-64)
    return np.asarray(np.where(scale, scaled.astype(np.float32), plain))


def div_fixup(quotient: F32, denominator: F32, numerator: F32) -> F32:
    """The quotient with IEEE's special cases and its sign. Quotients beyond the range become infinities; the published
    pseudocode leaves open what the steps before make of those.
    """
    q, d, n = np.broadcast_arrays(quotient, denominator, numerator)
    sign = np.where(np.signbit(d) ^ np.signbit(n), np.float32(-1), np.float32(1))
    gap = _exponent(n) - _exponent(d)
    conditions = [
        np.isnan(n) | np.isnan(d),
        ((d == 0) & (n == 0)) | (np.isinf(d) & np.isinf(n)),
        (d == 0) | np.isinf(n),
        np.isinf(d) | (n == 0),
        gap > 128,
        gap < -150,
    ]
    nan, infinity, zero = np.float32(np.nan), np.float32(np.inf), np.float32(0)
    made = np.select(
        conditions, [nan, nan, sign * infinity, sign * zero, sign * infinity, sign * zero], np.copysign(np.abs(q), sign)
    )
    return np.asarray(made.astype(np.float32))
