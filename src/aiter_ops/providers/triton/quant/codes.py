"""Device functions of the quant kernels beyond the shared ones."""

import triton
import triton.language as tl


@triton.jit
def magnitude_bits(x):
    """|x| of fp32 as an integer; such integers order as the magnitudes do, NaN above Inf."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def divide(x, scale, inverse):
    """x / scale from inverse = 1/scale, rounded as a division is (one step with the exact remainder), so that values
    midway between two codes go where the reference sends them. Where the remainder is not finite, the product is
    already the quotient.
    """
    q = x * inverse
    rest = tl.fma(-scale, q, x)
    return tl.where(rest == rest, tl.fma(rest, inverse, q), q)
