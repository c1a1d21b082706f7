"""rms_norm: one kernel for rows that fit a program, one that reads wider rows in steps."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import Launcher, as_rows, machine
from aiter_ops.providers.triton.tiles.norm import row_tile


@triton.jit
def _weighted(n, w, offset, CAST: tl.constexpr, dtype: tl.constexpr):
    """n · (w + offset), the normalised value rounded to `dtype` first where CAST."""
    if CAST:
        n = n.to(dtype).to(tl.float32)
    return n * (w + offset)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    rows,
    stride,
    eps,
    offset,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    CAST: tl.constexpr,
):
    """y[r, :] for ROWS rows a program, each held whole. x [rows, N] with row stride `stride`; y contiguous."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (col < N)
    x = tl.load(x_ptr + row * stride + col, mask=mask, other=0.0).to(tl.float32)
    n = x * tl.rsqrt(tl.sum(x * x, axis=1) / N + eps)[:, None]
    if HAS_WEIGHT:
        w = tl.load(w_ptr + col, mask=col < N, other=0.0).to(tl.float32)
        n = _weighted(n, w, offset, CAST, x_ptr.dtype.element_ty)
    tl.store(y_ptr + row * N + col, n.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_wide_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    rows,
    stride,
    eps,
    offset,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    CAST: tl.constexpr,
):
    """One row a program, read in steps of BLOCK columns: once for the sum of squares, once more for the result."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, N, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * stride + col, mask=col < N, other=0.0).to(tl.float32)
        squares += x * x
    scale = tl.rsqrt(tl.sum(squares, axis=0) / N + eps)
    for start in range(0, N, BLOCK):
        col = start + tl.arange(0, BLOCK)
        n = tl.load(x_ptr + row * stride + col, mask=col < N, other=0.0).to(tl.float32) * scale
        if HAS_WEIGHT:
            w = tl.load(w_ptr + col, mask=col < N, other=0.0).to(tl.float32)
            n = _weighted(n, w, offset, CAST, x_ptr.dtype.element_ty)
        tl.store(y_ptr + row * N + col, n.to(y_ptr.dtype.element_ty), mask=col < N)


_whole, _wide = Launcher(rms_norm_kernel), Launcher(rms_norm_wide_kernel)


@PROVIDER.implements("rms_norm")
def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float = 0.0, cast_before_weight: bool = False
) -> Tensor:
    flat, rows, width, stride = as_rows(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = row_tile(machine(), width)
    tensors = (flat, flat if weight is None else weight.contiguous(), y)
    numbers = (rows, stride, eps, weight_offset)
    if width <= tile.block:
        constants = (width, tile.rows, tile.block, weight is not None, cast_before_weight)
        _whole(-(-rows // tile.rows), tensors, numbers, constants, tile.num_warps)
    else:
        _wide(rows, tensors, numbers, (width, tile.block, weight is not None, cast_before_weight), tile.num_warps)
    return y
