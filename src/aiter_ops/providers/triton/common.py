"""Device functions the kernels share."""

import triton
import triton.language as tl


@triton.jit
def amax_keep_nan(x, axis: tl.constexpr):
    """max|x| along an axis; NaN wins. The bits of non-negative floats order as integers, NaN above Inf."""
    bits = tl.abs(x).to(tl.float32).to(tl.int32, bitcast=True)
    return tl.max(bits, axis=axis).to(tl.float32, bitcast=True)
