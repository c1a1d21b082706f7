"""What the kernels of several families share: device functions for quantisation and for places, and new tensors for scales.

They follow `aiter_ops.ops.formulas` to the bit where a format is exact (NaN, Inf, floors, powers of two, saturation).
Quantisers and gated activations divide by the scale with the rounding of a division (`quant.codes.divide`). The norms
multiply with one factor of root and scale: a division there is a quarter more instructions (compiled for sm_90), and
moves one code in two million, as does the last bit of the root, which follows the order of the sum.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice
from triton.language.target_info import is_cuda

from aiter_ops.core.platforms import platform

SCALE_FLOOR = tl.constexpr(2.0**-126)
"""Smallest scale, as in the references."""

INTERPRETED = tl.constexpr(platform().triton_interpret)
"""Triton's interpreter has no device library."""

ROUND = tl.constexpr(12582912.0)
"""1.5·2^23: fp32 plus this keeps no fraction bits, so the addition rounds to the nearest integer, ties to even."""


@triton.jit
def widen(x):
    """A tile as fp32. On NVIDIA two bf16 at a time take two instructions, where one by one they take three."""
    if x.dtype == tl.bfloat16 and is_cuda() and not INTERPRETED and x.numel >= 256:
        both: tl.constexpr = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
        bits = tl.inline_asm_elementwise(both, "=r,=r,r", [x], dtype=tl.int32, is_pure=True, pack=2)
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


FP16_OVERFLOWS = tl.constexpr(65520.0)
"""From here on fp32 rounds to infinity in fp16."""


@triton.jit
def rounded_to(x, dtype: tl.constexpr):
    """fp32 x rounded to `dtype`, as fp32.

    On AMD a kernel that makes FP8 sets MODE.FP16_OVFL, so that codes saturate; what overflows fp16 is cut then, too.
    """
    y = x.to(dtype).to(tl.float32)
    if dtype == tl.float16 and (INTERPRETED or not is_cuda()):
        y = tl.where(tl.abs(x) >= FP16_OVERFLOWS, x * float("inf"), y)
    return y


@triton.jit
def magnitude_bits(x):
    """The bits of |x|, fp32, as int32: they order as the magnitudes do, NaN above Inf."""
    return tl.abs(x.to(tl.float32)).to(tl.int32, bitcast=True)


@triton.jit
def amax_keep_nan(x, axis: tl.constexpr, keep_dims: tl.constexpr = False):
    """max|x| along an axis, fp32; NaN wins."""
    return tl.max(magnitude_bits(x), axis=axis, keep_dims=keep_dims).to(tl.float32, bitcast=True)


@triton.jit
def power_of_two_above(x):
    """The smallest power of two >= x for normal x > 0, by the bits; NaN and Inf stay."""
    bits = x.to(tl.int32, bitcast=True)
    up = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.where(x < float("inf"), up, x)


@triton.jit
def scale_of(amax, TOP: tl.constexpr, UE8M0: tl.constexpr):
    """amax / TOP (the largest code), at least `SCALE_FLOOR`; UE8M0 rounds it up to a power of two. NaN, Inf stay.

    The quotient is rounded as a division rounds: the product with 1/TOP, corrected by its exact remainder. It could
    differ only below the floor.
    """
    INVERSE: tl.constexpr = 1.0 / TOP
    near = amax * INVERSE
    scale = tl.fma(tl.fma(near, -TOP, amax), INVERSE, near)
    scale = tl.where(amax < float("inf"), scale, amax)
    scale = tl.where(scale < SCALE_FLOOR, SCALE_FLOOR, scale)
    if UE8M0:
        scale = power_of_two_above(scale)
    return scale


@triton.jit
def encode(x, inverse, dtype: tl.constexpr, TOP: tl.constexpr, SATURATE: tl.constexpr):
    """Codes of fp32 x · inverse, to nearest, ties to even; NaN is NaN in FP8 and 0 in int8. `inverse`: 1 / scale.

    SATURATE: cut at ±TOP first; a scale taken from the values themselves needs no cut, nor do NVIDIA's conversions to
    FP8 (PTX ISA, cvt.rn.satfinite).
    """
    y = x * inverse
    if SATURATE and (dtype == tl.int8 or INTERPRETED or not is_cuda()):
        y = tl.minimum(tl.maximum(y, -TOP, tl.PropagateNan.ALL), TOP, tl.PropagateNan.ALL)
    if dtype == tl.int8:
        # the low byte of the rounded sum's bits is the integer in two's complement
        return (tl.where(y == y, y, 0.0) + ROUND).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        return y.to(dtype)


@triton.jit
def inverse_of(scale):
    """1 / scale of any scale, to two units of 2^-23 or better, exactly for powers of two."""
    return 1.0 / scale


@triton.jit
def inverse_of_made(scale):
    """The same for a scale of `scale_of`: from 2^-126 to 2^121, Inf or NaN, which one instruction inverts."""
    if INTERPRETED:
        return 1.0 / scale
    else:
        return libdevice.fast_dividef(1.0, scale)


@triton.jit
def times_sigmoid(factor, x):
    """factor / (1 + exp(-x)), fp32, to a few units of 2^-23: silu where both are one, the sigmoid where factor is 1."""
    if INTERPRETED:
        return factor / (1.0 + tl.exp(-x))
    else:
        # a product with -1 becomes a sign of the exponential's own factor; -x would be a subtraction
        return libdevice.fast_dividef(factor, 1.0 + libdevice.fast_expf(x * -1.0))


def new_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A new contiguous tensor of x's shape, not filled; faster than ``torch.empty``."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def new_scales(x: Tensor, groups: int, layout: str) -> tuple[Tensor, int, int]:
    """fp32 scales [..., groups] for x [..., N], not filled, with the strides of `layout` (``row``, ``col``,
    ``col_tma4``; see `formulas.lay_out`), and the stride between rows (all leading dimensions together) and between
    groups.
    """
    leading = x.shape[:-1]
    if layout == "row":
        return x.new_empty((*leading, groups), dtype=torch.float32), groups, 1
    count = math.prod(leading)
    if layout == "col":
        pitch = count
        laid = x.new_empty((groups, count), dtype=torch.float32).t()
    else:
        pitch = (count + 3) // 4 * 4
        laid = x.new_empty((groups, pitch), dtype=torch.float32).as_strided((count, groups), (1, pitch))
    if len(leading) > 1:
        laid = laid.unflatten(0, leading)
    elif not leading:
        laid = laid.view(groups)
    return laid, 1, pitch
