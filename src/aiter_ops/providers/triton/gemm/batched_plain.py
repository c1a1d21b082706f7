"""Batches of products of 16- and 32-bit floats."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.division import divided
from aiter_ops.providers.triton.launch import Launcher, batch_invariant, machine
from aiter_ops.providers.triton.tiles.gemm import k_first
from aiter_ops.providers.triton.tiles.gemm_mx import plain_batch_tile

from .batched import result
from .body import summed
from .multiply import in_reach, too_wide


@triton.jit(do_not_specialize=["m"])
def plain_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    k,
    x_batch,
    x_row,
    w_batch,
    w_row,
    y_batch,
    y_row,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    TURNED: tl.constexpr,
    BIAS: tl.constexpr,
    K_FIRST: tl.constexpr,
):
    """y[b] = x[b] · w[b]ᵀ + bias[b] for ROWS rows and COLUMNS columns of one b, k in steps of DEPTH.

    x [B, m, k], w [B, n, k], y [B, m, n] with the strides given and unit stride in a row; bias [B, n] contiguous.
    EVEN: DEPTH divides k. WHOLE: COLUMNS divides n. TURNED: w is the left factor of the matrix instructions.
    K_FIRST: see `summed`.
    """
    row_tiles = tl.cdiv(m, ROWS)
    column_tiles = tl.cdiv(n, COLUMNS)
    tile, row_tile = divided(tl.program_id(0), row_tiles)
    outer, column_tile = divided(tile, column_tiles)
    row, column, b = row_tile * ROWS, column_tile * COLUMNS, outer.to(tl.int64)

    step = tl.arange(0, DEPTH)[None, :]
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, COLUMNS)[None, :] if K_FIRST else tl.arange(0, COLUMNS)[:, None]
    w_step = tl.arange(0, DEPTH)[:, None] if K_FIRST else step
    in_x = row + i < m
    in_w = column + j < n
    x_at = x_ptr + b * x_batch + row.to(tl.int64) * x_row + i * x_row + step
    w_at = w_ptr + b * w_batch + column.to(tl.int64) * w_row + j * w_row + w_step
    total = tl.zeros([COLUMNS, ROWS] if TURNED else [ROWS, COLUMNS], tl.float32)
    for first in range(0, k, DEPTH):
        if EVEN:
            x = tl.load(x_at + first, mask=in_x, other=0.0)
            w = tl.load(w_at + first) if WHOLE else tl.load(w_at + first, mask=in_w, other=0.0)
        else:
            inside = step < k - first
            x = tl.load(x_at + first, mask=in_x & inside, other=0.0)
            w_inside = w_step < k - first if K_FIRST else inside
            w = tl.load(w_at + first, mask=in_w & w_inside, other=0.0)
        total = summed(total, x, w, TURNED, False, K_FIRST)
    y = total.T if TURNED else total
    j = tl.arange(0, COLUMNS)[None, :]
    if BIAS:
        y += tl.load(bias_ptr + b * n + column + j, mask=column + j < n, other=0.0).to(tl.float32)
    y_at = y_ptr + b * y_batch + row.to(tl.int64) * y_row + column + i * y_row + j
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=(row + i < m) & (column + j < n))


_plain = Launcher(plain_kernel)


@PROVIDER.implements(
    "bmm_a16w16",
    refuses=lambda target: lambda x, w, bias, transpose_bm, out_dtype: too_wide(x, w),
    batch_invariant=True,
)
def bmm_a16w16(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    transpose_bm: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    batch, m, k = x.shape
    n = w.shape[1]
    x, w = in_reach(x), in_reach(w)
    y, y_batch, y_row = result(x, n, transpose_bm, out_dtype)
    tile, depth = plain_batch_tile(machine(), batch, m, n, k, x.element_size(), batch_invariant())
    numbers = (m, n, k, x.stride(0), x.stride(1), w.stride(0), w.stride(1), y_batch, y_row)
    constants = (tile.rows, tile.columns, depth, k % depth == 0, n % tile.columns == 0, tile.turned)
    constants = (*constants, bias is not None, k_first(machine(), w.element_size()) and not tile.turned)
    grid = batch * -(-m // tile.rows) * -(-n // tile.columns)
    _plain(
        grid, (x, w, y if bias is None else bias.contiguous(), y), numbers, constants, tile.num_warps, tile.num_stages
    )
    return y
