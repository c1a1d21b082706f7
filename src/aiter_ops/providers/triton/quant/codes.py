"""Device functions of the quant kernels beyond the shared ones."""

import triton
import triton.language as tl


@triton.jit
def divide(x, scale, inverse, ANY: tl.constexpr):
    """x / scale from inverse = 1/scale, rounded as a division is (one step with the exact remainder), so that values
    midway between two codes go where the reference sends them.

    ANY: any scale; else one taken from the largest |x|, so that only the scale itself can be infinite.
    """
    q = x * inverse
    if ANY:
        rest = tl.fma(-scale, q, x)
        return tl.where(tl.abs(rest) < float("inf"), tl.fma(rest, inverse, q), q)
    return tl.fma(tl.fma(tl.where(inverse == 0.0, 0.0, -scale), q, x), inverse, q)
