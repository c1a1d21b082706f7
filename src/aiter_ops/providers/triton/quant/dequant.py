"""code · scale for every format and granularity: a program does pieces of rows that have one scale each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.quant.dequant import group_of
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import Launcher, as_rows, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.quant import dequant_tile


@triton.jit
def e2m1_value(code):
    """fp32 values of E2M1 codes 0..15: the bits of fp16 values 2^14 times smaller."""
    bits = ((code & 7) << 9) | ((code & 8) << 12)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def e8m0_value(code):
    """2^(code - 127) in fp32; 255 is NaN. 2^-127 is the one subnormal."""
    wide = code.to(tl.int32)
    # a mantissa bit for the code 0, where wide - 1 is negative, and for 255
    odd = (((wide - 1) >> 31) | ((wide + 1) >> 8)) & 1
    return ((wide << 23) | (odd << 22)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["total", "plane", "scale_plane", "scale_row", "scale_group"])
def dequant_kernel(
    q_ptr,
    scale_ptr,
    y_ptr,
    total,
    plane,
    scale_plane,
    scale_row,
    scale_group,
    stride,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PACKED: tl.constexpr,
    E8M0: tl.constexpr,
):
    """y[r, :] = q[r, :] · scale for SPAN of `total` pieces; a piece is at most BLOCK columns of one group of a row.

    `plane` rows of q share `scale_plane` rows of scales (blocks of BLOCK_ROWS rows do not reach over a plane's end).
    """
    STEPS: tl.constexpr = (GROUP + BLOCK - 1) // BLOCK
    GROUPS: tl.constexpr = (N + GROUP - 1) // GROUP
    piece = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    row, part = piece // (GROUPS * STEPS), piece % (GROUPS * STEPS)
    group = part // STEPS
    start = (part % STEPS) * BLOCK
    left = tl.minimum(GROUP - start, N - group * GROUP - start)
    line = row
    if BLOCK_ROWS > 1:
        line = (row // plane) * scale_plane + (row % plane) // BLOCK_ROWS
    there = piece < total
    scale_at = line.to(tl.int64) * scale_row + group.to(tl.int64) * scale_group
    scale = tl.load(scale_ptr + scale_at, mask=there, other=0)
    if E8M0:
        scale = e8m0_value(scale)
    row = row.to(tl.int64)
    first = (group * GROUP + start)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    if PACKED:
        if GROUP % 2 == 0:
            byte = tl.arange(0, BLOCK // 2)[None, :]
            mask = there[:, None] & (byte * 2 < left[:, None])
            pair = tl.load(q_ptr + (row * stride)[:, None] + first // 2 + byte, mask=mask, other=0).to(tl.int32)
            code = tl.interleave(pair & 15, pair >> 4)
        else:
            at = first + col
            mask = there[:, None] & (col < left[:, None])
            pair = tl.load(q_ptr + (row * stride)[:, None] + at // 2, mask=mask, other=0).to(tl.int32)
            code = (pair >> ((at & 1) * 4)) & 15
        value = e2m1_value(code)
    else:
        mask = there[:, None] & (col < left[:, None])
        at = q_ptr + (row * stride)[:, None] + first + col
        value = tl.load(at, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    y = (value * scale[:, None]).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + (row * N)[:, None] + first + col, y, mask=there[:, None] & (col < left[:, None]))


_dequant = Launcher(dequant_kernel, free=5)


def _refusal(target: Platform) -> Predicate:
    def predicate(q, scale, out_dtype, block_rows, group_size):  # type: ignore[no-untyped-def]
        return None if q.dtype == torch.uint8 else fp8_predicate(target, q.dtype)

    return predicate


@PROVIDER.implements("dequant", refuses=_refusal, batch_invariant=True)
def dequant(
    q: Tensor, scale: Tensor, out_dtype: torch.dtype | None = None, block_rows: int = 1, group_size: int | None = None
) -> Tensor:
    packed = q.dtype == torch.uint8
    flat, rows, width, stride = as_rows(q)
    n = width * 2 if packed else width
    y = q.new_empty((*q.shape[:-1], n), dtype=out_dtype or torch.float32)
    if scale.numel() == 1:
        group, strides, plane, scale_plane, block_rows = n, (0, 0), 1, 1, 1
    else:
        group = min(group_of(q, scale, group_size), n)
        scale = scale if scale.dim() == 2 else scale.reshape(-1, scale.shape[-1])
        strides = (scale.stride(0), scale.stride(1))
        plane = q.shape[-2] if q.dim() > 1 else 1
        scale_plane = -(-plane // block_rows)
    tile = dequant_tile(machine(), rows, n, group, y.element_size())
    total = rows * -(-n // group) * -(-group // tile.block)
    constants = (n, group, tile.block, tile.span, block_rows, packed, scale.dtype == torch.uint8)
    numbers = (total, plane, scale_plane, *strides, stride)
    _dequant(-(-total // tile.span), (flat, scale, y), numbers, constants, tile.num_warps)
    return y
