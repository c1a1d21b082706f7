"""Numbers that every provider makes alike to the bit: weights of columns, and the race that draws one of them.

Nothing here calls exp or log, which differ from library to library. All steps are single fp32 sums, products and one
division, each rounded to nearest (no contraction to fused multiply-adds), conversions of integers to fp32, and integer
arithmetic. Masses are integers, so that their sums are the same in any order. So a token depends on its row, seed and
offset alone: not on provider, device, batch or the place in it.

    d = logit - largest logit          s = min(log2(e) / temperature, 2^120)          t = d · s, at most 0
    weight = floor(2^40 · 2^t), and 0 for t < -40: a column 2^40 times less probable than the first is never drawn
    race   = E · 2^-t, with E = -log2(u) exponentially distributed and u = (z | 1) / 2^32 of the column's 32-bit word z

The column with the least race wins: the Gumbel-max trick (Maddison et al., arXiv:1411.0030) without its outer logarithm,
for argmax(logit/T - log(-log u)) is argmin(-log(u) · exp(-logit/T)).

u has 31 random bits in the middle of their cells. E is accurate to 3e-7 of itself also where u is next to 1, so that its
least value is 2^-31.5: among 2^17 equal columns another has the winner's race in one draw of 2^14.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG2_E = 1.4426950216293335
"""log2(e), rounded to fp32."""

MOST_SCALE = 2.0**120
"""log2(e) / temperature is cut here: 0 times it stays 0, for temperatures down to the smallest."""

WEIGHT_BITS = 40
"""The largest column weighs 2^40: 2^18 of them can be added in int64 with room, and 2^-40 is the least probability."""

EXP2 = (
    *(1.0, 0.6931470036506653, 0.24022242426872253),
    *(0.05550733581185341, 0.009671512991189957, 0.001326472731307149),
)
"""2^f = Σ EXP2[i] · f^i for |f| <= 1/2, to 1e-7 of itself; fp32 numbers, made by minimising the relative error."""

MINUS_LOG2 = (
    *(float.fromhex("0x1.715476p+0"), float.fromhex("0x1.71531cp-1"), float.fromhex("0x1.ecfb84p-2")),
    *(float.fromhex("0x1.66b366p-2"), float.fromhex("0x1.8e4dd2p-2"), float.fromhex("-0x1.2cb0fcp-2")),
    *(float.fromhex("0x1.d07eaep+0"), float.fromhex("-0x1.392830p+1"), float.fromhex("0x1.0a1f46p+1")),
)
"""-log2(1 - v) = v · Σ MINUS_LOG2[i] · v^i for 0 <= v <= 1/2, to 2e-7 of itself; made likewise."""


def polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Σ coefficients[i] · x^i by Horner's rule, every product and sum rounded to fp32."""
    total = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x
        total = total + c
    return total


def exp2(t: Tensor) -> tuple[Tensor, Tensor]:
    """2^t = mantissa · 2^exponent: fp32 from 0.707 to 1.415, and int32; |t| < 2^21."""
    nearest = t.round()
    return polynomial(t - nearest, EXP2), nearest.to(torch.int32)


def exponents(logits: Tensor, largest: Tensor, temperature: Tensor) -> Tensor:
    """t [R, V] fp32 as above, of fp32 logits [R, V] without NaN, their maxima [R, 1] and temperatures [R] above 0."""
    scale = (torch.full_like(temperature, LOG2_E) / temperature).clamp(max=MOST_SCALE)[:, None]
    return torch.where(logits == largest, 0.0, logits - largest) * scale


def weights(t: Tensor) -> Tensor:
    """floor(2^40 · 2^t) as int64, 0 where t < -40 or NaN."""
    drawn = t >= -WEIGHT_BITS
    mantissa, exponent = exp2(torch.where(drawn, t, 0.0))
    whole = (mantissa * 2.0**24).to(torch.int64) << WEIGHT_BITS - 24
    return torch.where(drawn, whole >> -exponent.long(), 0)


def exponential(z: Tensor) -> Tensor:
    """E = -log2((z | 1) / 2^32), fp32, of words z as int64 from 0 to 2^32 - 1.

    u >= 1/2: v = 1 - u is taken from the integer, so that it is exact to fp32. Else u = 2^-k · (1 - v), and E = k - log2(1 - v).
    """
    odd = z | 1
    high = odd >= 2**31
    near = torch.where(high, 2**32 - odd, odd).to(torch.float32)
    bits = near.view(torch.int32)
    half = (bits & 0x7FFFFF | 0x3F000000).view(torch.float32)
    v = torch.where(high, near * 2.0**-32, 1.0 - half)
    k = torch.where(high, 0, 127 + 31 - (bits >> 23)).to(torch.float32)
    return v * polynomial(v, MINUS_LOG2) + k


def race(z: Tensor, t: Tensor) -> Tensor:
    """E · 2^-t, fp32, for -40 <= t <= 0."""
    mantissa, exponent = exp2(-t)
    return exponential(z) * (mantissa.view(torch.int32) + (exponent << 23)).view(torch.float32)


def mass_below(top_p: Tensor, total: Tensor) -> Tensor:
    """ceil(top_p · total), at least 1, exactly: int64 of top_p [R] fp32 below 1, cut to steps of 2^-24, and int64 total.

    A column is within top-p where the mass of larger logits is less than this.
    """
    steps = (top_p.clamp(min=0.0) * 2.0**24).to(torch.int64)
    low = (steps * (total & 0xFFFFFF) + 0xFFFFFF) >> 24
    return (steps * (total >> 24) + low).clamp(min=1)


def least_exponent(min_p: Tensor) -> Tensor:
    """log2(min_p), cut to -40..0, fp32 of min_p [R] fp32; -40 where min_p is not above 0. To 2e-7, absolutely or of itself.

    A column is within min-p where its t is no less.
    """
    share = torch.where(min_p > 2.0**-WEIGHT_BITS, min_p, 2.0**-WEIGHT_BITS).clamp(max=1.0)
    bits = share.view(torch.int32)
    v = 1.0 - (bits & 0x7FFFFF | 0x3F000000).view(torch.float32)
    whole = ((bits >> 23) - 126).to(torch.float32)
    return (whole - v * polynomial(v, MINUS_LOG2)).clamp(-float(WEIGHT_BITS), 0.0)
