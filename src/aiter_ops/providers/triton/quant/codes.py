"""Device functions from values to codes and scales, as the references define them."""

import torch
import triton
import triton.language as tl


def largest(dtype: torch.dtype) -> float:
    """The largest finite code of a format."""
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


@triton.jit
def magnitude_bits(x):
    """|x| of fp32 as an integer; such integers order as the magnitudes do, NaN above Inf."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of(amax, TOP: tl.constexpr, UE8M0: tl.constexpr):
    """amax / TOP, at least 2^-126; UE8M0: rounded up to a power of two. NaN and Inf stay."""
    scale = tl.div_rn(amax, tl.full(amax.shape, TOP, tl.float32))
    scale = tl.where(scale < 1.1754943508222875e-38, 1.1754943508222875e-38, scale)
    if UE8M0:
        bits = scale.to(tl.int32, bitcast=True)
        up = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
        scale = tl.where((bits & 0x7FFFFFFF) < 0x7F800000, up, scale)
    return scale


@triton.jit
def inverse_of(scale):
    return tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)


@triton.jit
def divide(x, scale, inverse):
    """x / scale from inverse = 1/scale, rounded as a division is (one step with the exact remainder); where the
    remainder is not finite the product is already the quotient.
    """
    q = x * inverse
    rest = tl.fma(-scale, q, x)
    return tl.where(rest == rest, tl.fma(rest, inverse, q), q)


@triton.jit
def encode(y, TOP: tl.constexpr, SATURATE: tl.constexpr, dtype: tl.constexpr):
    """Codes of fp32 y, nearest even. SATURATE: y may pass TOP by more than rounding. int8 makes NaN code 0."""
    if SATURATE:
        y = tl.clamp(y, -TOP, TOP, propagate_nan=tl.PropagateNan.ALL)
    if dtype == tl.int8:
        # adding 1.5·2^23 rounds to an integer, to even at a tie, and leaves it in the low bits
        whole = (y + 12582912.0).to(tl.int32, bitcast=True)
        return tl.where(y == y, whole, 0).to(tl.int8)
    return y.to(dtype)
