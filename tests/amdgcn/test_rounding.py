"""Arithmetic with one rounding where a second one would show, against integers and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest

from aiter_ops.amdgcn import numbers as num
from aiter_ops.amdgcn.halves import half_bits, lower, upper

from .test_vector import round32

EVERY = np.arange(65536, dtype=np.uint16)
TINY = 2.0**-149


def ties(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """a, b, c of sums that lie halfway between two fp32 numbers, next to that, or at the ends of the range."""
    random = np.random.default_rng(seed)
    shift = random.integers(-20, 20, count)
    # odd numbers of 13 and 12 bits: their product is halfway between two numbers of 24 bits, or of fewer bits
    a = np.ldexp((random.integers(2**12, 2**13, count) | 1).astype(np.float64), shift)
    b = np.ldexp((random.integers(2**11, 2**12, count) | 1).astype(np.float64), -shift)
    c = random.choice([0.0, 1.0, -1.0, 3.0], count) * 2.0 ** -random.integers(2, 149, count).astype(np.float64)
    kind = random.integers(0, 6, count)
    # the product half a step of c, or next to it
    big = np.ldexp(random.integers(2**23, 2**24, count).astype(np.float64), random.integers(-30, 30, count))
    half = np.spacing(big.astype(np.float32)).astype(np.float64) / 2
    a = np.where(kind == 1, half * random.choice([1, 1 + 2.0**-23, 1 - 2.0**-24, -1, 3], count), a)
    b, c = np.where(kind == 1, random.choice([1, -1], count), b), np.where(kind == 1, big, c)
    # cancelled but for some bits, or all of them
    c = np.where(kind == 2, -(a * b).astype(np.float32).astype(np.float64), c)
    # around the smallest normal number, and half of the least one
    low = np.ldexp(random.integers(2**11, 2**12, count).astype(np.float64), -80)
    a, b = np.where(kind == 3, low, a), np.where(kind == 3, np.ldexp(b, -69 - shift % 9), b)
    c = np.where(kind == 3, random.choice([0.0, 2.0**-126, -(2.0**-126), TINY, -TINY, 3 * TINY], count), c)
    # around the largest
    a, b = np.where(kind == 4, 2.0**64, a), np.where(kind == 4, random.choice([2.0**63, -(2.0**63)], count), b)
    top = (2 - 2.0**-23) * 2.0**126
    c = np.where(kind == 4, random.choice([top, -top, 2.0**103, 2.0**126, np.nextafter(top, np.inf)], count), c)
    with np.errstate(all="ignore"):
        return tuple(x.astype(np.float32) for x in (a, b, c))


def nearest(x: float, y: float, z: float) -> float:
    return round32(Fraction(x) * Fraction(y) + Fraction(z))


@pytest.mark.parametrize("rows", [1, 40, 1100])
def test_a_fused_multiply_add_that_a_second_rounding_would_change(rows):
    """Alone, within one block of numbers, and at the seams of several."""
    random = np.random.default_rng(rows)
    a, b, c = (random.normal(size=(rows, 64)).astype(np.float32) for _ in range(3))
    count = min(3000, rows * 64)
    at = random.permutation(rows * 64)[:count]
    at[: count // 10] = rows * 64 - 1 - np.arange(count // 10)
    for x, made in zip((a, b, c), ties(count, rows), strict=True):
        x.reshape(-1)[at] = made
    with np.errstate(all="ignore"):
        got = num.fma32(a, b, c)
        twice = (a.astype(np.float64) * b + c).astype(np.float32)
    for place in at:
        x, y, z, g = (float(v.reshape(-1)[place]) for v in (a, b, c, got))
        if np.isfinite((x, y, z)).all():
            assert g == nearest(x, y, z), (x, y, z)
    assert rows == 1 or (twice != got).sum() > count // 100


def test_a_fused_multiply_add_broadcasts_as_numpy_does():
    random = np.random.default_rng(1)
    a = random.normal(size=(2, 600, 64)).astype(np.float32)
    b, c = random.normal(size=(2, 600, 1)).astype(np.float32), np.full((1, 1), 0.75, np.float32)
    wide = [np.ascontiguousarray(np.broadcast_to(x, a.shape)).reshape(-1) for x in (a, b, c)]
    assert np.array_equal(num.fma32(a, b, c).reshape(-1), num.fma32(*wide))
    assert num.fma32(a[:, :0], b[:, :0], c).shape == (2, 0, 64)


def test_infinities_nan_and_zeros_of_a_fused_multiply_add():
    inf, nan = np.inf, np.nan
    cases = [(inf, 0, 1, nan), (inf, 1, -inf, nan), (2, inf, 1, inf), (1, 1, -inf, -inf), (nan, 1, 1, nan)]
    cases += [
        (1, 1, -1, 0.0),
        (-1, 0, -0.0, -0.0),
        (-1, 0, 0.0, 0.0),
        (1, 0, -0.0, 0.0),
        (-(2.0**-100), 2.0**-100, 0, -0.0),
    ]
    a, b, c, want = (np.array([list(column)], np.float32) for column in zip(*cases, strict=True))
    with np.errstate(all="ignore"):
        got = num.fma32(a, b, c)
    assert np.array_equal(got, want, equal_nan=True)
    assert np.array_equal(np.signbit(got)[want == 0], np.signbit(want)[want == 0])


def test_both_halves_of_a_word_are_widened():
    others = np.random.default_rng(2).integers(0, 1 << 16, (2, 65536), dtype=np.uint32)
    want = EVERY.view(np.float16).astype(np.float32)
    for got in (upper(EVERY.astype(np.uint32) << 16 | others[0]), lower(others[1] << 16 | EVERY)):
        assert np.array_equal(got, want, equal_nan=True)
        assert np.array_equal(np.signbit(got)[~np.isnan(want)], (EVERY >= 0x8000)[~np.isnan(want)])


def half_of(units: int, sign: bool) -> int:
    """The bits of the fp16 number nearest to |units| · 2^-48, ties to even; of zero the sign is given."""
    size = abs(units)
    # denormal numbers are multiples of 2^-24
    dropped = max(size.bit_length() - 11, 24)
    kept, rest = size >> dropped, size & ((1 << dropped) - 1)
    kept += rest > 1 << (dropped - 1) or (rest == 1 << (dropped - 1) and kept & 1)
    bits = min(kept + ((dropped - 24) << 10), 0x7C00)
    return bits | (0x8000 if (units < 0 or (units == 0 and sign)) else 0)


def test_a_fused_multiply_add_of_fp16_is_rounded_once():
    """All triples of numbers at the ends of the range, of powers of two, and of fractions that make ties."""
    halves = np.array(
        [0, 1, 2, 3, 0x3FF, 0x400, 0x401, 0x7FF, 0x800, 0x1001, 0x2BFF, 0x3800, 0x3801, 0x3BFF, 0x3C00, 0x3C01]
    )
    halves = np.concatenate([halves, [0x3E01, 0x4201, 0x4FFF, 0x5401, 0x6BFF, 0x7800, 0x7BFF]])
    halves = np.concatenate([halves, halves | 0x8000]).astype(np.uint16)
    a, b, c = (x.reshape(-1) for x in np.meshgrid(halves, halves, halves, indexing="ij"))
    with np.errstate(all="ignore"):
        got = num.fma16(*(x.view(np.float16) for x in (a, b, c))).view(np.uint16)
        twice = (a.view(np.float16).astype(np.float32) * b.view(np.float16) + c.view(np.float16)).astype(np.float16)
    units = {int(h): int(float(h.view(np.float16)) * 2**24) for h in halves}
    negative_zeros = ((a ^ b) & c & 0x8000) != 0
    want = [
        half_of(units[x] * units[y] + (units[z] << 24), bool(sign))
        for x, y, z, sign in zip(a.tolist(), b.tolist(), c.tolist(), negative_zeros, strict=True)
    ]
    assert np.array_equal(got, np.array(want, np.uint16))
    assert (twice.view(np.uint16) != got).sum() > 20


def test_fp16_bits_have_nothing_above_them():
    x = np.random.default_rng(3).integers(0, 1 << 32, (64, 64), dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        want = x.astype(np.float16)
        got = half_bits(x)
    number = ~np.isnan(want)
    assert np.array_equal(got[number], want.view(np.uint16).astype(np.uint32)[number])
    assert got.max() < 65536


@pytest.mark.parametrize("kind", ["12 bits", "13 bits", "small", "large", "fp32", "zeros", "not finite"])
def test_products_are_added_one_after_another(kind):
    """Where fp32 holds every product, and where it does not."""
    random = np.random.default_rng(4)
    bits = 13 if kind == "13 bits" else 12
    a, b = (random.integers(-(2**bits), 2**bits, shape) / 2.0**6 for shape in ((3, 4, 8), (3, 5, 8)))
    total = random.normal(size=(3, 4, 5)).astype(np.float32)
    if kind in ("small", "large"):
        a, b = (np.ldexp(x, {"small": -68, "large": 60}[kind]) for x in (a, b))
        total = np.ldexp(total, {"small": -125, "large": 120}[kind])
    if kind == "fp32":
        a, b = (random.normal(size=x.shape).astype(np.float32).astype(np.float64) for x in (a, b))
    if kind == "zeros":
        a[:, ::2], b[:, :, 3] = 0, 0
    if kind == "not finite":
        a[0, 0, 2], a[1, 1, 3], b[2, 0, 0] = np.inf, np.nan, -np.inf
    before = total.copy()
    with np.errstate(all="ignore"):
        got = num.add_products(a, b, total)
        assert (num._products_in_f32(a, b) is not None) == (kind in ("12 bits", "zeros"))
    assert np.array_equal(total, before)
    for n, i, j in np.ndindex(got.shape):
        want = float(before[n, i, j])
        for x, y in zip(a[n, i].tolist(), b[n, j].tolist(), strict=True):
            finite = np.isfinite((x, y, want)).all()
            want = nearest(x, y, want) if finite else float(np.float32(np.float64(x) * np.float64(y) + want))
        assert got[n, i, j] == want or (np.isnan(want) and np.isnan(got[n, i, j])), (n, i, j)


def test_the_reciprocal_is_rounded_once_where_it_is_denormal():
    x = (2.0**126 * (1 + np.random.default_rng(5).random((1, 400)) * 3)).astype(np.float32)
    x = x[np.isfinite(x)][None]
    with np.errstate(all="ignore"):
        for value, got in zip(x[0].tolist(), num.reciprocal(x)[0].tolist(), strict=True):
            assert got == round32(1 / Fraction(value))
