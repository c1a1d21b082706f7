"""The OCP MX formats: 32 neighbours share a power-of-two scale; exponents and E2M1 codes are made from bits."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import encode, magnitude_bits, new_like, widen
from aiter_ops.providers.triton.launch import Launcher, as_rows, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.quant import block_tile


@triton.jit
def shared_exponent(bits, ROUNDING: tl.constexpr, FP4: tl.constexpr):
    """Biased E8M0 exponent from the bits of a block's largest magnitude; 255 where that is Inf or NaN."""
    # the element format: mantissa bits, exponent and mantissa field of its largest value (6 or 448)
    MANTISSA: tl.constexpr = 1 if FP4 else 3
    EMAX: tl.constexpr = 2 if FP4 else 8
    TOP_BITS: tl.constexpr = 0x400000 if FP4 else 0x600000
    rounded = bits
    if ROUNDING == "even":
        rounded = bits + (1 << (22 - MANTISSA))
    exponent = (rounded >> 23) - EMAX
    if ROUNDING == "up":
        exponent += ((bits & 0x7FFFFF) > TOP_BITS).to(tl.int32)
    return tl.where(bits < 0x7F800000, tl.maximum(exponent, 0), 255)


ONES = tl.constexpr(8388608.0)
"""2^23: added to fp32 it leaves no fraction bits, so the sum is rounded to nearest, ties to even."""

ONES_PACKED = tl.constexpr(-0x05000000)
"""What the exponent bits of eight such sums come to, each shifted by its nibble, as int32."""


@triton.jit
def packed_e2m1(y, SPAN: tl.constexpr, SATURATE: tl.constexpr):
    """int32 [SPAN, 4] of E2M1 codes with sign from fp32 y [SPAN, 32], low nibble first; nearest, ties to even.

    The code of a magnitude is the least of 2a, a + 2 and a/2 + 4 (steps 0.5, 1 and 2), rounded: each is, in one
    rounding with the addition. SATURATE: |y| may reach 7. NaN gives any bits.
    """
    a = tl.abs(y)
    code = tl.minimum(tl.minimum(a * 2.0 + ONES, a + (2.0 + ONES)), a * 0.5 + (4.0 + ONES))
    if SATURATE:
        code = tl.minimum(code, 7.0 + ONES)
    sign = (y.to(tl.int32, bitcast=True) >> 28) & 8
    nibbles = tl.reshape(code.to(tl.int32, bitcast=True) + sign, [SPAN, 4, 8])
    return tl.sum(nibbles << (tl.arange(0, 8) * 4)[None, None, :], axis=2) - ONES_PACKED


@triton.jit(do_not_specialize=["total"])
def mx_kernel(
    x_ptr,
    q_ptr,
    e8m0_ptr,
    total,
    stride,
    BLOCKS: tl.constexpr,
    SPAN: tl.constexpr,
    ROUNDING: tl.constexpr,
    FP4: tl.constexpr,
):
    """SPAN of `total` blocks of 32 a program, BLOCKS to a row of x with row stride `stride`; results contiguous."""
    block = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    there = block < total
    start = (block // BLOCKS).to(tl.int64) * stride + (block % BLOCKS) * 32
    at = x_ptr + start[:, None] + tl.arange(0, 32)[None, :]
    x = widen(tl.load(at, mask=there[:, None], other=0.0, eviction_policy="evict_first"))
    bits = tl.max(magnitude_bits(x), axis=1)
    exponent = shared_exponent(bits, ROUNDING, FP4)
    # 1/scale = 2^(127 - exponent) is a normal number: exponents end at 253
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    first = block.to(tl.int64)[:, None]
    if FP4:
        # with `even` and `up` a block's largest value rounds to 6 at most
        packed = packed_e2m1(x * inverse[:, None], SPAN, ROUNDING == "floor")
        words = tl.where((exponent == 255)[:, None], 0, packed)
        at = q_ptr.to(tl.pointer_type(tl.int32)) + first * 4 + tl.arange(0, 4)[None, :]
        tl.store(at, words, mask=there[:, None])
    else:
        factor = tl.where(exponent == 255, float("nan"), inverse)[:, None]
        codes = encode(x, factor, q_ptr.dtype.element_ty, 448.0, True)
        tl.store(q_ptr + first * 32 + tl.arange(0, 32)[None, :], codes, mask=there[:, None])
    tl.store(e8m0_ptr + block, exponent.to(tl.uint8), mask=there)


_mx = Launcher(mx_kernel)


def _run(x: Tensor, rounding: str, fp4: bool) -> tuple[Tensor, Tensor]:
    flat, rows, width, stride = as_rows(x)
    blocks = width // 32
    q = x.new_empty((*x.shape[:-1], width // 2), dtype=torch.uint8) if fp4 else new_like(x, torch.float8_e4m3fn)
    e8m0 = x.new_empty((*x.shape[:-1], blocks), dtype=torch.uint8)
    tile = block_tile(machine(), rows * blocks, x.element_size(), fp4)
    constants = (blocks, tile.span, rounding, fp4)
    _mx(-(-rows * blocks // tile.span), (flat, q, e8m0), (rows * blocks, stride), constants, tile.num_warps)
    return q, e8m0


@PROVIDER.implements("mxfp4_quant", batch_invariant=True)
def mxfp4_quant(x: Tensor, rounding: Literal["floor", "even", "up"] = "even") -> tuple[Tensor, Tensor]:
    return _run(x, rounding, True)


def _e4m3fn_refusal(target: Platform) -> Predicate | None:
    reason = fp8_predicate(target, torch.float8_e4m3fn)
    return (lambda x, rounding: reason) if reason else None


@PROVIDER.implements("mxfp8_quant", refuses=_e4m3fn_refusal, batch_invariant=True)
def mxfp8_quant(x: Tensor, rounding: Literal["floor", "even", "up"] = "floor") -> tuple[Tensor, Tensor]:
    return _run(x, rounding, False)
