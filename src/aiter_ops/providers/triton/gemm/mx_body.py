"""Device functions of products with MXFP4 factors: how codes become bf16, and one step of the sum.

E2M1 times a power of two is exact in bf16, and so are products of two bf16 in fp32.
"""

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from aiter_ops.providers.triton.common import INTERPRETED, magnitude_bits
from aiter_ops.providers.triton.quant.dequant import e2m1_value, e8m0_value
from aiter_ops.providers.triton.quant.mx import ONES, shared_exponent

from .body import summed

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
def _over_blocks(scale, PACKED: tl.constexpr):
    """[N, G] -> [N, 16·G] (PACKED) or [N, 32·G]: every scale beside each of its bytes or elements."""
    N: tl.constexpr = scale.shape[0]
    G: tl.constexpr = scale.shape[1]
    EACH: tl.constexpr = 16 if PACKED else 32
    return tl.reshape(tl.broadcast_to(scale[:, :, None], [N, G, EACH]), [N, EACH * G])


@triton.jit
def values(packed, e8m0):
    """The values of the low and of the high nibbles of MXFP4 [N, K/2] under scales [N, K/32], each [N, K/2].

    bf16; fp32 in the interpreter, which computes bf16 wrongly. NVIDIA only: other compilers have `tl.dot_scaled`.
    """
    if INTERPRETED:
        scale = _over_blocks(e8m0_value(e8m0), True)
        codes = packed.to(tl.int32)
        return e2m1_value(codes & 15) * scale, e2m1_value(codes >> 4) * scale
    else:
        code = e8m0.to(tl.int16)
        bits = tl.where(code == 0, 0x40, tl.where(code == 255, 0x7FFF, code << 7)).to(tl.int16)
        scale = _over_blocks(bits.to(tl.bfloat16, bitcast=True), True)
        return tl.inline_asm_elementwise(
            _UNPACK,
            "=r,=r,=r,=r,r,r,r",
            [packed, scale],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )


@triton.jit
def rounded_to_mxfp4(x):
    """fp32 x [M, K] after MXFP4 quantisation with rounding ``even``, as `mxfp4_quant` does; exact in bf16."""
    M: tl.constexpr = x.shape[0]
    G: tl.constexpr = x.shape[1] // 32
    blocks = tl.reshape(x, [M, G, 32])
    exponent = shared_exponent(tl.max(magnitude_bits(blocks), axis=2), "even", True)
    # 1/scale = 2^(127 - exponent) is a normal number: exponents end at 253
    y = blocks * ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, :, None]
    size = tl.abs(y)
    # steps of 0.5, 1 and 2: a sum with 2^23 keeps no fraction, so it rounds to nearest, ties to even
    small, middle, large = (size * 2.0 + ONES) - ONES, (size + ONES) - ONES, (size * 0.5 + ONES) - ONES
    size = tl.where(size < 2.0, small * 0.5, tl.where(size < 4.0, middle, large * 2.0))
    y = tl.where(y < 0.0, -size, size) * e8m0_value(exponent)[:, :, None]
    return tl.reshape(y, [M, G * 32])


@triton.jit
def _step(acc, x, w, w_scale, low, high, SWAP: tl.constexpr):
    """acc + x · wᵀ for bf16 x [M, K] (fp32 in the interpreter) and MXFP4 w, given as it is or as its values."""
    if INTERPRETED or is_cuda():
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        acc = summed(acc, even, low, SWAP, False)
        return summed(acc, odd, high, SWAP, False)
    else:
        return tl.dot_scaled(x, None, "bf16", w.T, w_scale, "e2m1", acc, fast_math=True)


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
):
    """acc + x · wᵀ for MXFP4 w [N, K/2] with scales [N, K/32]; acc [M, N] fp32, or [N, M] with SWAP.

    KIND of x: ``float`` [M, K]; ``fp8`` [M, K]; ``mxfp4`` [M, K/2] with x_scale [M, K/32]. PREQUANT: floats are rounded
    to MXFP4 first. NATIVE: the matrix unit takes FP8 and FP4 with scales of blocks. Scales of 255 give any sum here,
    except on NVIDIA.
    """
    low, high = w, w
    if INTERPRETED or is_cuda():
        low, high = values(w, w_scale)
    if KIND == "mxfp4":
        if INTERPRETED or is_cuda():
            even, odd = values(x, x_scale)
            acc = summed(acc, even, low, SWAP, False)
            return summed(acc, odd, high, SWAP, False)
        else:
            return tl.dot_scaled(x, x_scale, "e2m1", w.T, w_scale, "e2m1", acc, fast_math=True)
    elif KIND == "fp8":
        if NATIVE:
            return tl.dot_scaled(x, None, "e4m3", w.T, w_scale, "e2m1", acc, fast_math=True)
        else:
            return _step(acc, x.to(tl.float32 if INTERPRETED else tl.bfloat16), w, w_scale, low, high, SWAP)
    elif INTERPRETED:
        x = x.to(tl.float32)
        return _step(acc, rounded_to_mxfp4(x) if PREQUANT else x, w, w_scale, low, high, SWAP)
    elif PREQUANT:
        return _step(acc, rounded_to_mxfp4(x.to(tl.float32)).to(tl.bfloat16), w, w_scale, low, high, SWAP)
    elif x.dtype == tl.bfloat16:
        return _step(acc, x, w, w_scale, low, high, SWAP)
    else:
        # two bf16 hold an fp16, three an fp32
        PIECES: tl.constexpr = 2 if x.dtype == tl.float16 else 3
        rest = x.to(tl.float32)
        for _ in tl.static_range(PIECES):
            piece = rest.to(tl.bfloat16)
            acc = _step(acc, piece, w, w_scale, low, high, SWAP)
            rest = rest - piece.to(tl.float32)
            rest = tl.where(rest == rest, rest, 0.0)
        return acc
