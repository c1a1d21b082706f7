"""One scale for `group_size` neighbours; a row is one group of its own width (group_quant, per_token_quant)."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.formulas import code_max
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import (
    amax_keep_nan,
    encode,
    inverse_of_made,
    magnitude_bits,
    new_like,
    new_scales,
    scale_of,
    widen,
)
from aiter_ops.providers.triton.gates import silu
from aiter_ops.providers.triton.launch import Launcher, as_rows, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.quant import group_tile

from .codes import divide


@triton.jit
def _read(at, mask, N: tl.constexpr, SILU: tl.constexpr):
    """fp32 values at `at`, or silu(gate)·up with the other half N columns on."""
    x = widen(tl.load(at, mask=mask, other=0.0, eviction_policy="evict_first"))
    if SILU:
        x = silu(x) * widen(tl.load(at + N, mask=mask, other=0.0, eviction_policy="evict_first"))
    return x


@triton.jit
def _bounded(amax, bound_ptr, BOUND: tl.constexpr):
    """The largest magnitude, capped by the bound; NaN of either wins."""
    if BOUND:
        amax = tl.minimum(amax, tl.load(bound_ptr), propagate_nan=tl.PropagateNan.ALL)
    return amax


@triton.jit(do_not_specialize=["total", "scale_row", "scale_group"])
def groups_kernel(
    x_ptr,
    bound_ptr,
    q_ptr,
    scale_ptr,
    total,
    scale_row,
    scale_group,
    stride,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    TOP: tl.constexpr,
    UE8M0: tl.constexpr,
    BOUND: tl.constexpr,
    SILU: tl.constexpr,
):
    """SPAN of `total` groups a program, each held whole: SIZE columns of a row that has GROUPS of them.

    x [rows, GROUPS·SIZE] (twice as wide with SILU) with row stride `stride`; q contiguous; scale [rows, GROUPS] with
    the strides given.
    """
    N: tl.constexpr = GROUPS * SIZE
    group = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    row = (group // GROUPS).to(tl.int64)
    part = group % GROUPS
    there = group < total
    col = tl.arange(0, BLOCK)[None, :]
    mask = there[:, None] & (col < SIZE)
    start = row * stride + part * SIZE
    x = _read(x_ptr + start[:, None] + col, mask, N, SILU)
    scale = scale_of(_bounded(amax_keep_nan(x, 1), bound_ptr, BOUND), TOP, UE8M0)
    y = divide(x, scale[:, None], inverse_of_made(scale)[:, None], BOUND)
    codes = encode(y, 1.0, q_ptr.dtype.element_ty, TOP, BOUND)
    tl.store(q_ptr + group.to(tl.int64)[:, None] * SIZE + col, codes, mask=mask)
    tl.store(scale_ptr + row * scale_row + part.to(tl.int64) * scale_group, scale, mask=there)


@triton.jit(do_not_specialize=["total", "scale_row", "scale_group"])
def wide_groups_kernel(
    x_ptr,
    bound_ptr,
    q_ptr,
    scale_ptr,
    total,
    scale_row,
    scale_group,
    stride,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    TOP: tl.constexpr,
    UE8M0: tl.constexpr,
    BOUND: tl.constexpr,
    SILU: tl.constexpr,
):
    """As `groups_kernel` for one group a program that is read in steps of BLOCK, for its maximum and once more."""
    N: tl.constexpr = GROUPS * SIZE
    group = tl.program_id(0).to(tl.int64)
    row, part = group // GROUPS, group % GROUPS
    first = x_ptr + row * stride + part * SIZE
    peaks = tl.zeros([BLOCK], tl.int32)
    for start in range(0, SIZE, BLOCK):
        col = start + tl.arange(0, BLOCK)
        peaks = tl.maximum(peaks, magnitude_bits(_read(first + col, col < SIZE, N, SILU)))
    scale = scale_of(_bounded(tl.max(peaks, axis=0).to(tl.float32, bitcast=True), bound_ptr, BOUND), TOP, UE8M0)
    inverse = inverse_of_made(scale)
    for start in range(0, SIZE, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = _read(first + col, col < SIZE, N, SILU)
        codes = encode(divide(x, scale, inverse, BOUND), 1.0, q_ptr.dtype.element_ty, TOP, BOUND)
        tl.store(q_ptr + group * SIZE + col, codes, mask=col < SIZE)
    tl.store(scale_ptr + row * scale_row + part * scale_group, scale)


_whole, _wide = Launcher(groups_kernel, free=3), Launcher(wide_groups_kernel, free=3)


def quantise(
    x: Tensor,
    size: int,
    dtype: torch.dtype | None,
    layout: str = "row",
    ue8m0: bool = False,
    bound: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Codes and scales of x, or of silu(gate)·up of its halves, in groups of `size` neighbours."""
    assert dtype is not None
    flat, rows, width, stride = as_rows(x)
    if silu:
        width //= 2
        q = x.new_empty((*x.shape[:-1], width), dtype=dtype)
    else:
        q = new_like(x, dtype)
    groups = width // size
    scale, scale_row, scale_group = new_scales(x, groups, layout)
    tile = group_tile(machine(), rows * groups, size, x.element_size() * (1 + silu))
    tensors = (flat, flat if bound is None else bound, q, scale)
    numbers = (rows * groups, scale_row, scale_group, stride)
    tail = (code_max(dtype), ue8m0, bound is not None, silu)
    if size <= tile.block:
        constants = (groups, size, tile.block, tile.span, *tail)
        _whole(-(-rows * groups // tile.span), tensors, numbers, constants, tile.num_warps)
    else:
        _wide(rows * groups, tensors, numbers, (groups, size, tile.block, *tail), tile.num_warps)
    return q, scale


def _group_refusal(target: Platform) -> Predicate:
    return lambda x, group_size, dtype, scale_layout, ue8m0: fp8_predicate(target, dtype)


@PROVIDER.implements("group_quant", refuses=_group_refusal, batch_invariant=True)
def group_quant(
    x: Tensor,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    return quantise(x, group_size, dtype, scale_layout, ue8m0)


@PROVIDER.implements(
    "per_token_quant",
    refuses=lambda t: lambda x, dtype, scale_upper_bound: fp8_predicate(t, dtype),
    batch_invariant=True,
)
def per_token_quant(
    x: Tensor, dtype: torch.dtype | None = None, scale_upper_bound: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return quantise(x, x.shape[-1], dtype, bound=scale_upper_bound)
