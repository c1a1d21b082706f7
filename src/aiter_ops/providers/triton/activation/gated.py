"""act(gate)·up: every program does a few pieces of rows, so one row and many fill the machine alike."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import widen
from aiter_ops.providers.triton.gates import gated
from aiter_ops.providers.triton.launch import Launcher, as_rows, machine
from aiter_ops.providers.triton.tiles.activation import gated_tile


@triton.jit(do_not_specialize=["total"])
def gated_kernel(
    x_ptr,
    y_ptr,
    total,
    stride,
    alpha,
    limit,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    ACT: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """y[r, :] = act(x[r, :N]) · x[r, N:] for SPAN of `total` pieces; a piece is BLOCK columns of y's row."""
    PIECES: tl.constexpr = (N + BLOCK - 1) // BLOCK
    piece = tl.program_id(0) * SPAN + tl.arange(0, SPAN)[:, None]
    row = (piece // PIECES).to(tl.int64)
    col = (piece % PIECES) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = piece < total
    if N % BLOCK != 0:
        mask = mask & (col < N)
    at = x_ptr + row * stride + col
    gate = widen(tl.load(at, mask=mask, other=0.0, eviction_policy="evict_first"))
    up = widen(tl.load(at + N, mask=mask, other=0.0, eviction_policy="evict_first"))
    y = gated(gate, up, ACT, alpha, limit, LIMIT)
    tl.store(y_ptr + row * N + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["total"])
def interleaved_kernel(
    x_ptr,
    y_ptr,
    total,
    stride,
    alpha,
    limit,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    ACT: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """As `gated_kernel`, gate in the even and up in the odd columns of x, which is read in whole pieces."""
    PIECES: tl.constexpr = (N + BLOCK - 1) // BLOCK
    piece = tl.program_id(0) * SPAN + tl.arange(0, SPAN)[:, None]
    row = (piece // PIECES).to(tl.int64)
    first = (piece % PIECES) * BLOCK
    wide = 2 * first + tl.arange(0, 2 * BLOCK)[None, :]
    inside = (piece < total) & (wide < 2 * N)
    pairs = widen(tl.load(x_ptr + row * stride + wide, mask=inside, other=0.0, eviction_policy="evict_first"))
    gate, up = tl.split(tl.reshape(pairs, [SPAN, BLOCK, 2]))
    y = gated(gate, up, ACT, alpha, limit, LIMIT)
    col = first + tl.arange(0, BLOCK)[None, :]
    tl.store(y_ptr + row * N + col, y.to(y_ptr.dtype.element_ty), mask=(piece < total) & (col < N))


_halves, _interleaved = Launcher(gated_kernel), Launcher(interleaved_kernel)


def _run(start: Launcher, x: Tensor, act: str, alpha: float, limit: float | None) -> Tensor:
    flat, rows, width, stride = as_rows(x)
    n = width // 2
    y = x.new_empty((*x.shape[:-1], n), dtype=x.dtype)
    tile = gated_tile(machine(), rows, n, x.element_size())
    total = rows * -(-n // tile.block)
    constants = (n, tile.block, tile.span, act, limit is not None)
    numbers = (total, stride, float(alpha), 0.0 if limit is None else float(limit))
    start(-(-total // tile.span), (flat, y), numbers, constants, tile.num_warps)
    return y


@PROVIDER.implements("silu_and_mul", batch_invariant=True)
def silu_and_mul(x: Tensor, limit: float | None = None) -> Tensor:
    return _run(_halves, x, "silu", 1.0, limit)


@PROVIDER.implements("gelu_and_mul", batch_invariant=True)
def gelu_and_mul(x: Tensor) -> Tensor:
    return _run(_halves, x, "gelu", 1.0, None)


@PROVIDER.implements("gelu_tanh_and_mul", batch_invariant=True)
def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    return _run(_halves, x, "gelu_tanh", 1.0, None)


@PROVIDER.implements("swiglu_oai_and_mul", batch_invariant=True)
def swiglu_oai_and_mul(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    return _run(_interleaved, x, "swiglu_oai", alpha, limit)
