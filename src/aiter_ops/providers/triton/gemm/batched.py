"""Batches of products with quantised weights: x is read a group of columns at a time, and quantised in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.formulas import code_max
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import amax_keep_nan, encode, inverse_of_made, scale_of, widen
from aiter_ops.providers.triton.division import divided
from aiter_ops.providers.triton.launch import Launcher, batch_invariant, fp8_predicate, machine
from aiter_ops.providers.triton.quant.codes import divide
from aiter_ops.providers.triton.tiles.gemm import k_first
from aiter_ops.providers.triton.tiles.gemm_mx import fp8_batch_tile
from aiter_ops.providers.triton.tiles.quant import next_power_of_two

from .multiply import in_reach, too_wide

WIDEST_GROUP = 512
"""Columns of the widest group that a program holds for a tile of rows."""


@triton.jit(do_not_specialize=["m"])
def fp8_kernel(
    x_ptr,
    w_ptr,
    w_scale_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    x_batch,
    x_row,
    w_batch,
    w_row,
    y_batch,
    y_row,
    groups,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    FEW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    TURNED: tl.constexpr,
    TOP: tl.constexpr,
    BIAS: tl.constexpr,
    K_FIRST: tl.constexpr,
):
    """y[b] = x[b] · w[b]ᵀ for ROWS rows and COLUMNS columns of one b; x is quantised a GROUP of columns at a time.

    x [B, m, groups·GROUP], w [B, n, groups·GROUP] FP8, y [B, m, n] with the strides given and unit stride in a row;
    bias [B, n] contiguous. BLOCK: a power of two that holds GROUP. FEW: products added before a sum is taken on in
    fp32; Hopper's matrix units keep few bits of FP8 sums. WHOLE: COLUMNS divides n. TURNED: w is the left factor of
    the matrix instructions. K_FIRST: see `summed`.
    """
    row_tiles = tl.cdiv(m, ROWS)
    column_tiles = tl.cdiv(n, COLUMNS)
    tile, row_tile = divided(tl.program_id(0), row_tiles)
    outer, column_tile = divided(tile, column_tiles)
    row, column, b = row_tile * ROWS, column_tile * COLUMNS, outer.to(tl.int64)

    k = tl.arange(0, BLOCK)[None, :]
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, COLUMNS)[None, :] if K_FIRST else tl.arange(0, COLUMNS)[:, None]
    w_k = tl.arange(0, BLOCK)[:, None] if K_FIRST else k
    in_x = row + i < m
    in_w = column + j < n
    if BLOCK != GROUP:
        in_x = in_x & (k < GROUP)
        in_w = in_w & (w_k < GROUP)
    x_at = x_ptr + b * x_batch + row.to(tl.int64) * x_row + i * x_row + k
    w_at = w_ptr + b * w_batch + column.to(tl.int64) * w_row + j * w_row + w_k
    total = tl.zeros([COLUMNS, ROWS] if TURNED else [ROWS, COLUMNS], tl.float32)
    for group in range(groups):
        if WHOLE and BLOCK == GROUP:
            w = tl.load(w_at + group * GROUP)
        else:
            w = tl.load(w_at + group * GROUP, mask=in_w, other=0.0)
        x = widen(tl.load(x_at + group * GROUP, mask=in_x, other=0.0))
        scale = scale_of(amax_keep_nan(x, 1), TOP, False)
        y = divide(x, scale[:, None], inverse_of_made(scale)[:, None], False)
        q = encode(y, 1.0, w_ptr.dtype.element_ty, TOP, False)
        if TURNED:
            total += tl.dot(w, q.T, max_num_imprecise_acc=FEW) * scale[None, :]
        else:
            total += tl.dot(q, w if K_FIRST else w.T, max_num_imprecise_acc=FEW) * scale[:, None]
    y = (total.T if TURNED else total) * tl.load(w_scale_ptr)
    j = tl.arange(0, COLUMNS)[None, :]
    mask = row + i < m
    if not WHOLE:
        mask = mask & (column + j < n)
    if BIAS:
        y += tl.load(bias_ptr + b * n + column + j, mask=column + j < n, other=0.0).to(tl.float32)
    y_at = y_ptr + b * y_batch + row.to(tl.int64) * y_row + column + i * y_row + j
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=mask)


_fp8 = Launcher(fp8_kernel)


def result(x: Tensor, n: int, transpose_bm: bool, dtype: torch.dtype | None) -> tuple[Tensor, int, int]:
    """A new y, not filled, for x [B, M, K], and its strides between batches and between rows."""
    b, m, _ = x.shape
    if transpose_bm:
        return x.new_empty((m, b, n), dtype=dtype or x.dtype), n, b * n
    return x.new_empty((b, m, n), dtype=dtype or x.dtype), m * n, n


def _fp8_refusal(target: Platform) -> Predicate:
    def predicate(x, w, w_scale, group_size, bias, transpose_bm, out_dtype):  # type: ignore[no-untyped-def]
        if group_size > WIDEST_GROUP:
            return f"takes groups of <= {WIDEST_GROUP} columns"
        return fp8_predicate(target, w.dtype) or too_wide(x, w)

    return predicate


@PROVIDER.implements("bmm_a8w8_group_prequant", refuses=_fp8_refusal, batch_invariant=True)
def bmm_a8w8_group_prequant(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    group_size: int = 128,
    bias: Tensor | None = None,
    transpose_bm: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    batch, m, k = x.shape
    n = w.shape[1]
    x, w = in_reach(x), in_reach(w)
    y, y_batch, y_row = result(x, n, transpose_bm, out_dtype)
    tile = fp8_batch_tile(machine(), batch, m, n, k // group_size, batch_invariant())
    bias_given = w_scale if bias is None else bias.contiguous()
    numbers = (m, n, x.stride(0), x.stride(1), w.stride(0), w.stride(1), y_batch, y_row, k // group_size)
    block = max(next_power_of_two(group_size), 32)
    shape = (group_size, block, min(block, 128), tile.rows, tile.columns, n % tile.columns == 0, tile.turned)
    constants = (*shape, code_max(w.dtype), bias is not None, k_first(machine(), 1))
    grid = batch * -(-m // tile.rows) * -(-n // tile.columns)
    _fp8(grid, (x, w, w_scale, bias_given, y), numbers, constants, tile.num_warps, tile.num_stages)
    return y
