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

from .halves import narrowed, widened

F32, F64 = NDArray[np.float32], NDArray[np.float64]


def sum_to_odd(p: Any, c: Any) -> Any:
    """p + c, both fp64 or both fp32, rounded to odd: the neighbour of an inexact sum whose last bit is 1."""
    s = p + c
    t = s - p
    error = (p - (s - t)) + (c - t)
    inexact = (error != 0) & np.isfinite(s)
    if not inexact.any():
        return s
    kind: Any = np.int64 if s.dtype == np.float64 else np.int32
    bits = s.view(kind)
    step = np.where((error > 0) == (s > 0), kind(1), kind(-1))
    even = (bits & 1) == 0
    return np.where(inexact & even, bits + step, bits).view(s.dtype)


def add_to_f32(p: F64, c: F32) -> F32:
    """p + c, rounded once to fp32."""
    out = np.empty(p.shape, np.float32)
    wide, size = _scratch.of(p.shape)
    np.add(p, c, out=wide)
    if _narrowed(wide, out, size):
        _round_once(p, c, out)
    return out


def fma32(a: F32, b: F32, c: F32) -> F32:
    """a · b + c, rounded once: the product is exact in fp64."""
    alike = a.shape == b.shape == c.shape
    shape = a.shape if alike else np.broadcast_shapes(a.shape, b.shape, c.shape)
    out = np.empty(shape, np.float32)
    if out.size <= _BLOCK or out.ndim < 2:
        _fma_block(a, b, c, out)
        return out
    if not alike:
        a, b, c = (np.broadcast_to(x, shape) for x in (a, b, c))
    rows = max(1, _BLOCK // (out.size // len(out)))
    for i in range(0, len(out), rows):
        _fma_block(a[i : i + rows], b[i : i + rows], c[i : i + rows], out[i : i + rows])
    return out


_BLOCK = 1 << 15
"""Numbers at a time: what is kept beside them, 12 bytes each, stays in a cache of the second level."""


def _fma_block(a: F32, b: F32, c: F32, out: F32) -> None:
    wide, size = _scratch.of(out.shape)
    np.multiply(a, b, out=wide, dtype=np.float64)
    np.add(wide, c, out=wide)
    if _narrowed(wide, out, size):
        product = np.multiply(a, b, dtype=np.float64)
        _round_once(np.broadcast_to(product, out.shape), c, out)


def _narrowed(total: F64, out: F32, size: F32) -> bool:
    """fp64 sums to fp32; whether rounding them a second time may have gone wrong: where one lies halfway between two fp32
    numbers, or the result is not above the smallest normal number (or is no number). `total` and `size` are overwritten.
    """
    np.copyto(out, total, casting="same_kind")
    below = total.view(np.int64)
    np.left_shift(below, 35, out=below)
    np.absolute(out, out=size)
    return bool(below.min(initial=0) == _HALFWAY or not size.min(initial=1) > _LEAST)


_HALFWAY, _LEAST = -(1 << 63), np.float32(2.0**-126)
"""The 29 bits of an fp64 number that fp32 has not, as the highest of 64, halfway; the smallest normal number of fp32."""


def _round_once(p: F64, c: F32, out: F32) -> None:
    """Make fp32 sums, of which some may be wrong, those of p + c rounded to odd first. A zero is exact: what fp64 rounds
    away is less than the sum, and a sum below half of the least fp32 number is exact.
    """
    total = p + c
    doubtful = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    doubtful |= (out != 0) & (np.abs(out) <= _LEAST)
    if doubtful.any():
        third = np.broadcast_to(c, out.shape)[doubtful].astype(np.float64)
        out[doubtful] = sum_to_odd(p[doubtful], third).astype(np.float32)


def add_products(a: F64, b: F64, total: F32) -> F32:
    """total [n, i, j] plus the products of a [n, i, k] and b [n, j, k], exact, one after another in the order of k, each sum
    rounded to fp32.
    """
    alike = _products_in_f32(a, b)
    rows, columns = (np.ascontiguousarray(x.transpose(2, 0, 1)) for x in alike or (a, b))
    product = np.empty(total.shape, rows.dtype)
    total = np.array(total)
    for row, column in zip(rows, columns, strict=True):
        np.multiply(row[:, :, None], column[:, None, :], out=product)
        if alike:
            total += product
        else:
            total = add_to_f32(product, total)
    return total


def _products_in_f32(a: F64, b: F64) -> tuple[F32, F32] | None:
    """a and b as fp32 where that holds all products of their numbers exactly: the numbers have 12 bits at most, and the
    products lie between its smallest normal and its largest number, or are zero.
    """
    narrow: list[F32] = []
    least = most = 1.0
    for x in (a, b):
        x32 = np.ascontiguousarray(x, np.float32)
        if (x32.view(np.uint32) & np.uint32(0xFFF)).any() or not np.array_equal(x32, x):
            return None
        size = np.abs(x32)
        most *= float(size.max(initial=0))
        least *= float(np.where(size == 0, np.float32(np.inf), size).min(initial=np.inf))
        narrow.append(x32)
    return (narrow[0], narrow[1]) if least >= 2.0**-126 and most < 2.0**127 else None


class _Scratch(threading.local):
    """Arrays for what is thrown away again, kept by shape: fresh ones of this size cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, ...], tuple[F64, F32]] = {}

    def of(self, shape: tuple[int, ...]) -> tuple[F64, F32]:
        """One of fp64, one of fp32."""
        made = self.held.get(shape)
        if made is None:
            if len(self.held) >= 16:
                self.held.clear()
            made = self.held[shape] = np.empty(shape, np.float64), np.empty(shape, np.float32)
        return made


_scratch = _Scratch()


def fma_of_halves(a: F32, b: F32, c: F32) -> F32:
    """a · b + c of fp16 numbers, such that rounding it to fp16 rounds the exact value once: fp32 holds the product, and the
    sum is rounded to odd (24 bits are at least 11 + 2).
    """
    return np.asarray(sum_to_odd(*np.broadcast_arrays(a * b, c)))


def fma16(a: Any, b: Any, c: Any) -> NDArray[np.float16]:
    """a · b + c of fp16, rounded once."""
    return narrowed(fma_of_halves(widened(a), widened(b), widened(c)))


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
    size = np.abs(x)
    if size.min(initial=1) >= _LEAST:
        return np.asarray(x)
    return np.asarray(np.where(size < _LEAST, np.copysign(np.float32(0), x), x))


def _rounded(function: Any, x: F32) -> F32:
    """A function of fp32, in fp64 and in place, rounded to fp32; its denormal results are zeros."""
    wide, _ = _scratch.of(x.shape)
    np.copyto(wide, x)
    function(wide, out=wide)
    return flush(wide.astype(np.float32))


def exp2(x: F32) -> F32:
    """Of a denormal number, as of zero: 1."""
    return _rounded(np.exp2, x)


def log2(x: F32) -> F32:
    return _rounded(np.log2, flush(x))


def sqrt(x: F32) -> F32:
    """fp32's own is rounded correctly; no result is denormal."""
    return np.asarray(np.sqrt(flush(x)))


def rsqrt(x: F32) -> F32:
    return _rounded(lambda y, out: np.divide(1.0, np.sqrt(y, out=out), out=out), flush(x))


def reciprocal(x: F32) -> F32:
    """IEEE, with denormal arguments and results."""
    return np.asarray(np.divide(np.float32(1), x))


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
