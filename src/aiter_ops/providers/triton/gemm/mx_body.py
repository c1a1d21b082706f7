"""Device functions of products with MXFP4 factors: how codes become bf16, and one step of the sum.

E2M1 times a power of two is exact in bf16, and so are products of two bf16 in fp32.
"""

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from aiter_ops.providers.triton.common import INTERPRETED, magnitude_bits
from aiter_ops.providers.triton.quant.dequant import e2m1_value, e8m0_value
from aiter_ops.providers.triton.quant.mx import shared_exponent

from .body import summed

ROUND_TO_HALVES = tl.constexpr(1.5 * 2**22)

_UNPACK = tl.constexpr(
    """{
    .reg .b32 even, odd, sign, size, up, none;
    mov.b32 up, 0x7e807e80;
    mov.b32 none, 0x80008000;
    prmt.b32 even, $4, 0, 0x1404;
    prmt.b32 odd, $4, 0, 0x3424;
    """
    + "".join(
        f"""
    {f"shl.b32 {half}, {half}, 4;" if last else ""}
    shr.b32 size, {half}, 6;
    and.b32 sign, {half}, 0x80008000;
    lop3.b32 size, size, 0x01c001c0, sign, 0xea;
    fma.rn.bf16x2 size, size, up, none;
    fma.rn.bf16x2 ${out}, size, ${5 + place}, none;
    """
        for half, place, last, out in (
            ("even", 0, False, 2),
            ("odd", 1, False, 3),
            ("even", 0, True, 0),
            ("odd", 1, True, 1),
        )
    )
    + "}"
)
"""PTX: four bytes of codes and their scales (bf16) to the four low and the four high values (bf16).

A byte goes to the upper half of 16 bits; sign, exponent and mantissa of a code are then those of a bf16 that is 2^126
times too small (subnormal as the code is), which one product repairs and another scales.
"""


@triton.jit
def _over_blocks(scale):
    """[N, G] -> [N, 16·G]: every scale beside each byte of its block."""
    N: tl.constexpr = scale.shape[0]
    G: tl.constexpr = scale.shape[1]
    return tl.reshape(tl.broadcast_to(scale[:, :, None], [N, G, 16]), [N, 16 * G])


@triton.jit
def cut_to_bf16(x):
    """The upper 16 bits of fp32 x as bf16: x itself where 8 bits hold it. Many AMD GPUs round in many instructions."""
    return (x.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def values(packed, e8m0):
    """The values of the low and of the high nibbles of MXFP4 [N, K/2] under scales [N, K/32], each [N, K/2].

    bf16; fp32 in the interpreter, which computes bf16 wrongly.
    """
    if is_cuda() and not INTERPRETED:
        code = e8m0.to(tl.int16)
        bits = tl.where(code == 0, 0x40, tl.where(code == 255, 0x7FFF, code << 7)).to(tl.int16)
        scale = _over_blocks(bits.to(tl.bfloat16, bitcast=True))
        return tl.inline_asm_elementwise(
            _UNPACK, "=r,=r,=r,=r,r,r,r", [packed, scale], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        scale = _over_blocks(e8m0_value(e8m0))
        codes = packed.to(tl.int32)
        low, high = e2m1_value(codes & 15) * scale, e2m1_value(codes >> 4) * scale
        if INTERPRETED:
            return low, high
        else:
            return cut_to_bf16(low), cut_to_bf16(high)


@triton.jit
def rounded_to_mxfp4(x):
    """fp32 x [M, K] after MXFP4 quantisation with rounding ``even``, as `mxfp4_quant` does; exact in bf16."""
    M: tl.constexpr = x.shape[0]
    G: tl.constexpr = x.shape[1] // 32
    blocks = tl.reshape(x, [M, G, 32])
    exponent = shared_exponent(tl.max(magnitude_bits(blocks), axis=2), "even", True)
    # 1/scale = 2^(127 - exponent) is a normal number: exponents end at 253
    y = blocks * ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, :, None]
    # of values in [p, 2p) the step is p/2, below 1 as above it; a sum with 1.5·2^22·p keeps no smaller bit: it rounds
    # to nearest, ties to even
    p = tl.maximum(magnitude_bits(y) & 0x7F800000, 0x3F800000).to(tl.float32, bitcast=True)
    y = ((y + p * ROUND_TO_HALVES) - p * ROUND_TO_HALVES) * e8m0_value(exponent)[:, :, None]
    return tl.reshape(y, [M, G * 32])


@triton.jit
def _step(acc, x, w, w_scale, low, high, SWAP: tl.constexpr, FAST: tl.constexpr, K_FIRST: tl.constexpr):
    """acc + x · wᵀ for bf16 x [M, K] (fp32 in the interpreter) and MXFP4 w, given as it is or as its values."""
    if INTERPRETED or is_cuda():
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        acc = summed(acc, even, low, SWAP, False)
        return summed(acc, odd, high, SWAP, False)
    else:
        return tl.dot_scaled(x, None, "bf16", w if K_FIRST else w.T, w_scale, "e2m1", acc, fast_math=FAST)


@triton.jit
def added(
    acc,
    x,
    x_scale,
    w,
    w_scale,
    KIND: tl.constexpr,
    PREQUANT: tl.constexpr,
    NATIVE: tl.constexpr,
    SWAP: tl.constexpr,
    FAST: tl.constexpr,
    K_FIRST: tl.constexpr,
):
    """acc + x · wᵀ for MXFP4 w [N, K/2] with scales [N, K/32]; acc [M, N] fp32, or [N, M] with SWAP.

    KIND of x: ``float`` [M, K]; ``fp8`` [M, K]; ``mxfp4`` [M, K/2] with x_scale [M, K/32]. PREQUANT: floats are rounded
    to MXFP4 first. NATIVE: the matrix unit takes FP8 and FP4 with scales of blocks. FAST: scales of 255 may give any
    sum, which saves AMD GPUs half of the instructions that make values of codes. K_FIRST: w is [K/2, N], see `summed`.
    """
    low, high = w, w
    if INTERPRETED or is_cuda():
        low, high = values(w, w_scale)
    if KIND == "mxfp4":
        if NATIVE:
            return tl.dot_scaled(x, x_scale, "e2m1", w if K_FIRST else w.T, w_scale, "e2m1", acc, fast_math=FAST)
        else:
            even, odd = values(x, x_scale)
            if INTERPRETED or is_cuda():
                acc = summed(acc, even, low, SWAP, False)
                return summed(acc, odd, high, SWAP, False)
            else:
                x = tl.reshape(tl.join(even, odd), [x.shape[0], x.shape[1] * 2])
                return _step(acc, x, w, w_scale, low, high, SWAP, FAST, K_FIRST)
    elif KIND == "fp8":
        if NATIVE:
            return tl.dot_scaled(x, None, "e4m3", w if K_FIRST else w.T, w_scale, "e2m1", acc, fast_math=FAST)
        else:
            wide = x.to(tl.float32)
            return _step(acc, wide if INTERPRETED else cut_to_bf16(wide), w, w_scale, low, high, SWAP, FAST, K_FIRST)
    elif INTERPRETED:
        x = x.to(tl.float32)
        return _step(acc, rounded_to_mxfp4(x) if PREQUANT else x, w, w_scale, low, high, SWAP, FAST, K_FIRST)
    elif PREQUANT:
        return _step(acc, cut_to_bf16(rounded_to_mxfp4(x.to(tl.float32))), w, w_scale, low, high, SWAP, FAST, K_FIRST)
    elif x.dtype == tl.bfloat16:
        return _step(acc, x, w, w_scale, low, high, SWAP, FAST, K_FIRST)
    else:
        # two bf16 hold an fp16; the rest of an Inf is any number
        upper = cut_to_bf16(x.to(tl.float32))
        lower = cut_to_bf16(tl.maximum(x.to(tl.float32) - upper.to(tl.float32), -1.0))
        acc = _step(acc, upper, w, w_scale, low, high, SWAP, FAST, K_FIRST)
        return _step(acc, lower, w, w_scale, low, high, SWAP, FAST, K_FIRST)
