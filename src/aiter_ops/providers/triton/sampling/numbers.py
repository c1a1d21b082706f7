"""Device functions that follow `aiter_ops.ops.sampling.exact` to the bit.

Kernels that call them are compiled with `EXACT`: a product and a sum contracted to a fused multiply-add would round once
where the definition rounds twice.
"""

import triton
import triton.language as tl

from aiter_ops.ops.sampling import exact, philox
from aiter_ops.providers.triton.common import ROUND
from aiter_ops.providers.triton.division import divided, unsigned
from aiter_ops.providers.triton.routing.choice import value_of

EXACT = (("enable_fp_fusion", False),)
"""Options of the compiler for kernels whose arithmetic is defined to the bit."""

LEAST_KEY = tl.constexpr(-(2**31))
"""Below the key of every number."""

NO_MASS_KEY = tl.constexpr(-0x7F800001)
"""The key of -inf."""

LEAST_T = tl.constexpr(-float(exact.WEIGHT_BITS))
MOST_SCALE = tl.constexpr(exact.MOST_SCALE)
LOG2_E = tl.constexpr(exact.LOG2_E)
SHIFT = tl.constexpr(exact.WEIGHT_BITS - 24)
ROUND_BITS = tl.constexpr(0x4B400000)
M0, M1 = (tl.constexpr(m) for m in philox.MULTIPLIERS)
W0, W1 = (tl.constexpr(w) for w in philox.WEYL)
ROUNDS = tl.constexpr(philox.ROUNDS)
E1, E2, E3, E4, E5 = (tl.constexpr(c) for c in exact.EXP2[1:])
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (tl.constexpr(c) for c in exact.MINUS_LOG2)


@triton.jit
def row_and_part(parts):
    """Which part of which row a program takes: its number, int64, the row, int64, and the part."""
    row, part = divided(tl.program_id(0), parts)
    return unsigned(tl.program_id(0)), unsigned(row), part


@triton.jit
def load_logits(row_ptr, column, columns):
    """fp32 logits of a row at `column`; -inf for NaN and outside."""
    x = tl.load(row_ptr + column, mask=column < columns, other=float("-inf")).to(tl.float32)
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def key_of(x):
    """int32 in the order of fp32 x without NaN, both zeros alike."""
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x == 0.0, 0, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def exp2_parts(t):
    """2^t = mantissa (0.707 to 1.415) · 2^exponent: fp32 and int32, for |t| < 2^21."""
    shifted = t + ROUND
    f = t - (shifted - ROUND)
    mantissa = E5 * f + E4
    mantissa = mantissa * f + E3
    mantissa = mantissa * f + E2
    mantissa = mantissa * f + E1
    mantissa = mantissa * f + 1.0
    return mantissa, shifted.to(tl.int32, bitcast=True) - ROUND_BITS


@triton.jit
def log_part(v):
    """-log2(1 - v), fp32, for 0 <= v <= 1/2."""
    total = L8 * v + L7
    total = total * v + L6
    total = total * v + L5
    total = total * v + L4
    total = total * v + L3
    total = total * v + L2
    total = total * v + L1
    total = total * v + L0
    return total * v


@triton.jit
def weight_of(t):
    """floor(2^40 · 2^t), int64, for -63 < t <= 0."""
    mantissa, exponent = exp2_parts(t)
    return unsigned((mantissa * 16777216.0).to(tl.int32)) << SHIFT >> unsigned(-exponent)


@triton.jit
def exponential(z):
    """-log2((z | 1) / 2^32), fp32, of uint32 z."""
    odd = (z | 1).to(tl.int32, bitcast=True)
    near = tl.abs(odd).to(tl.float32)
    bits = near.to(tl.int32, bitcast=True)
    half = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    v = tl.where(odd < 0, near * 2.3283064365386963e-10, 1.0 - half)
    k = tl.where(odd < 0, 0, 158 - (bits >> 23)).to(tl.float32)
    return log_part(v) + k


@triton.jit
def race_of(z, t):
    """E · 2^-t, fp32, for -40 <= t <= 0."""
    mantissa, exponent = exp2_parts(-t)
    return exponential(z) * (mantissa.to(tl.int32, bitcast=True) + (exponent << 23)).to(tl.float32, bitcast=True)


@triton.jit
def least_t(min_p):
    """log2(min_p) cut to -40..0; -40 where it is not above 0."""
    share = tl.where(min_p > 9.094947017729282e-13, min_p, 9.094947017729282e-13)
    bits = tl.minimum(share, 1.0).to(tl.int32, bitcast=True)
    v = 1.0 - ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    return tl.minimum(tl.maximum(((bits >> 23) - 126).to(tl.float32) - log_part(v), LEAST_T), 0.0)


@triton.jit
def mass_below(top_p, total):
    """ceil(top_p · total), at least 1, int64, for top_p < 1."""
    steps = unsigned((tl.maximum(top_p, 0.0) * 16777216.0).to(tl.int32))
    low = (steps * (total & 0xFFFFFF) + 0xFFFFFF) >> 24
    return tl.maximum(steps * (total >> 24) + low, 1)


@triton.jit
def philox4(c0, c2, c3, k0, k1):
    """The four words, uint32, of counters (c0, 0, c2, c3): c0 a tile, the others single words."""
    c1 = c0 ^ c0
    c2 = c1 + c2
    c3 = c1 + c3
    for _ in tl.static_range(ROUNDS):
        high0, low0 = tl.umulhi(c0, M0), c0 * M0
        high1, low1 = tl.umulhi(c2, M1), c2 * M1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += W0
        k1 += W1
    return c0, c1, c2, c3


@triton.jit
def halves(number):
    """The low and high word, uint32, of an int64."""
    return (number & 0xFFFFFFFF).to(tl.uint32), ((number >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def words_of(first, seed, offset, BLOCK: tl.constexpr):
    """uint32 [BLOCK]: the words of the columns from `first`, a multiple of 4."""
    k0, k1 = halves(seed)
    c2, c3 = halves(offset)
    a, b, c, d = philox4(((first >> 2) + tl.arange(0, BLOCK // 4)).to(tl.uint32), c2, c3, k0, k1)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def words_at(column, seed, offset):
    """uint32: the words of any columns, each with a counter to itself."""
    k0, k1 = halves(seed)
    c2, c3 = halves(offset)
    a, b, c, d = philox4((column >> 2).to(tl.uint32), c2, c3, k0, k1)
    place = column & 3
    return tl.where(place < 2, tl.where(place == 0, a, b), tl.where(place == 2, c, d))


@triton.jit
def packed(race, column):
    """int64 in the order of race (fp32, not negative), then column."""
    return (unsigned(race.to(tl.int32, bitcast=True)) << 32) | unsigned(column)


@triton.jit
def exponents(x, largest, scale):
    """t of fp32 logits; -inf or NaN for logits of -inf below the largest."""
    return tl.where(x == largest, 0.0, x - largest) * scale


@triton.jit
def row_facts(peaks_ptr, temperature_ptr, row, parts, PARTS: tl.constexpr):
    """Of a row: the key of its largest logit, that logit, the scale of t, and whether the first largest is taken."""
    part = tl.arange(0, PARTS)
    top = tl.max(tl.load(peaks_ptr + row * parts + part, mask=part < parts, other=LEAST_KEY), axis=0)
    temperature = tl.load(temperature_ptr + row)
    plain = (top == NO_MASS_KEY) | (temperature <= 0.0) | (temperature != temperature)
    scale = tl.minimum(tl.div_rn(LOG2_E, tl.where(plain, 1.0, temperature)), MOST_SCALE)
    return top, value_of(top), scale, plain
