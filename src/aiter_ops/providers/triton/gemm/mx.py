"""Products with MXFP4 weights: one kernel for every kind of activations, alone or in batches."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import INTERPRETED
from aiter_ops.providers.triton.division import divided
from aiter_ops.providers.triton.launch import Launcher, as_rows, batch_invariant, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.gemm import DIES, family
from aiter_ops.providers.triton.tiles.gemm_mx import MATRIX_UNITS_WITH_SCALES, codes_first, mx_tile

from .body import across, finished, of_tile, tile_of
from .multiply import in_reach, too_wide
from .mx_body import added
from .parts import add_parts


@triton.jit(do_not_specialize=["M", "N", "chunk", "a_scale_row"])
def mx_kernel(
    a_ptr,
    a_scale_ptr,
    b_ptr,
    b_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    chunk,
    a_scale_row,
    K,
    a_batch,
    a_row,
    b_batch,
    b_row,
    b_scale_batch,
    b_scale_row,
    y_batch,
    y_row,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    DIES: tl.constexpr,
    SWAP: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    SHUFFLED: tl.constexpr,
    KIND: tl.constexpr,
    PREQUANT: tl.constexpr,
    NATIVE: tl.constexpr,
    FAST: tl.constexpr,
    BIAS: tl.constexpr,
    K_FIRST: tl.constexpr,
):
    """y = a · bᵀ + bias of a [batch, M, K] and MXFP4 b [batch, N, K/2], a tile of BM × BN a program, K in steps of BK.

    KIND of a: ``float``; ``fp8`` with a scale a row; ``mxfp4`` [M, K/2] with scales [M, K/32]. PREQUANT, NATIVE: see
    `added`. SPLIT: a program does only `chunk` steps, and y is [parts, M, N], the parts' sums. EVEN: BK divides K.
    SHUFFLED: b and its scales are as `shuffle_weight` and `shuffle_scale` leave them. FAST: the sum does not
    heed scales of 255; they are looked for, and their rows and columns become NaN. K_FIRST: see `summed`; codes are read so.
    """
    across_m, across_n = tl.cdiv(M, BM) if GROUP else 1, tl.cdiv(N, BN)
    outer, pid = divided(tl.program_id(0), across_m * across_n)
    first, last = 0, tl.cdiv(K, BK)
    batch = outer.to(tl.int64)
    if SPLIT:
        batch = tl.zeros([], tl.int64)
        first = outer * chunk
        last = tl.minimum(first + chunk, last)
    tile_m, tile_n = tile_of(pid, across_m, across_n, GROUP, DIES)
    m0, n0 = tile_m * BM, tile_n * BN
    rm, rn = tl.arange(0, BM), tl.arange(0, BN)
    BYTES: tl.constexpr = BK // 2
    A_BYTES: tl.constexpr = BYTES if KIND == "mxfp4" else BK
    ra, rb, rs = tl.arange(0, A_BYTES), tl.arange(0, BYTES), tl.arange(0, BK // 32)
    # rows beyond b's end repeat its last one: their results are not stored
    row, col = tl.minimum(m0 + rm, M - 1), tl.minimum(n0 + rn, N - 1)
    there = (rm < M - m0)[:, None]
    rn = col - n0
    # offsets inside a tile fit 32 bits
    a_base = a_ptr + batch * a_batch + m0.to(tl.int64) * a_row + first * A_BYTES
    a_at = rm[:, None] * a_row + ra[None, :]
    a_scale_base = a_scale_ptr + m0.to(tl.int64) * a_scale_row + first * (BK // 32)
    a_scale_at = (row - m0)[:, None] * a_scale_row + rs[None, :]
    b_base = b_ptr + batch * b_batch
    b_scale_base = b_scale_ptr + batch * b_scale_batch
    if SHUFFLED:
        b_base += n0.to(tl.int64) * (K // 2) + first * (BYTES * 16)
        b_at = of_tile(rn // 16 * (8 * K) + rn % 16 * 16, rb // 16 * 256 + rb % 16, K_FIRST)
        b_scale_base += n0.to(tl.int64) * (K // 32)
        b_scale_at = (rn // 32 * K + rn % 16 * 4 + rn // 16 % 2)[:, None]
    else:
        b_base += n0.to(tl.int64) * b_row + first * BYTES
        b_at = rn[None, :] * b_row + rb[:, None] if K_FIRST else rn[:, None] * b_row + rb[None, :]
        b_scale_base += n0.to(tl.int64) * b_scale_row + first * (BK // 32)
        b_scale_at = rn[:, None] * b_scale_row + rs[None, :]
    acc = tl.zeros([BN, BM] if SWAP else [BM, BN], tl.float32)
    top_a, top_b = tl.zeros([BM, BK // 32], tl.uint8), tl.zeros([BN, BK // 32], tl.uint8)
    a_scale = top_a
    for step in range(first, last):
        if SHUFFLED:
            of_column = step * (BK // 32) + rs
            b_scale_here = b_scale_at + (of_column // 8 * 256 + of_column % 4 * 64 + of_column // 4 % 2 * 2)[None, :]
        else:
            b_scale_here = b_scale_at
        if EVEN:
            a = tl.load(a_base + a_at, mask=there, other=0.0)
            b = tl.load(b_base + b_at)
            b_scale = tl.load(b_scale_base + b_scale_here)
            if KIND == "mxfp4":
                a_scale = tl.load(a_scale_base + a_scale_at)
        else:
            left = K - step * BK
            a = tl.load(a_base + a_at, mask=there & (ra < left // (BK // A_BYTES))[None, :], other=0.0)
            b_inside = rb < left // 2
            b = tl.load(b_base + b_at, mask=b_inside[:, None] if K_FIRST else b_inside[None, :], other=0)
            b_scale = tl.load(b_scale_base + b_scale_here, mask=(rs < left // 32)[None, :], other=0)
            if KIND == "mxfp4":
                a_scale = tl.load(a_scale_base + a_scale_at, mask=(rs < left // 32)[None, :], other=0)
        acc = added(acc, a, a_scale, b, b_scale, KIND, PREQUANT, NATIVE, SWAP, FAST, K_FIRST)
        if FAST:
            top_a, top_b = tl.maximum(top_a, a_scale), tl.maximum(top_b, b_scale)
        a_base += A_BYTES
        a_scale_base += BK // 32
        if SHUFFLED:
            b_base += BYTES * 16
        else:
            b_base += BYTES
            b_scale_base += BK // 32
    if FAST:
        nan_rows, nan_columns = across(tl.max(top_a, axis=1) == 255, tl.max(top_b, axis=1) == 255, SWAP)
        acc = tl.where(nan_rows | nan_columns, float("nan"), acc)
    if KIND == "fp8":
        acc *= across(tl.load(a_scale_ptr + row.to(tl.int64) * a_scale_row), rn, SWAP)[0]
    rn = tl.arange(0, BN)
    y_base = y_ptr + m0.to(tl.int64) * y_row + n0 + outer.to(tl.int64) * y_batch
    if not SPLIT:
        acc = finished(acc, a_ptr, a_ptr, bias_ptr, row, col, 0, 0, "none", BIAS, SWAP)
    y_rows, y_columns = across(rm, rn, SWAP)
    y = acc.to(y_ptr.dtype.element_ty)
    tl.store(y_base + y_rows * y_row + y_columns, y, mask=(y_rows < M - m0) & (y_columns < N - n0))


_mx = Launcher(mx_kernel, free=4)


def multiply_mx(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    y: Tensor,
    a_scale: Tensor | None = None,
    bias: Tensor | None = None,
    prequant: bool = False,
    shuffled: bool = False,
) -> Tensor:
    """y = a · bᵀ + bias for a [B, M, K] (packed: [B, M, K/2]), b [B, N, K/2], b_scale [B, N, K/32], unit strides in rows.

    y: [B, M, N] of any strides between rows and batches. a_scale: fp32 [M, 1] of FP8, E8M0 [M, K/32] of MXFP4 (B is 1).
    """
    target, (batch, m, _), (n, bytes_of_row) = machine(), a.shape, b.shape[1:]
    k = bytes_of_row * 2
    kind = "mxfp4" if a.dtype == torch.uint8 else "float" if a.element_size() > 1 else "fp8"
    two = a.dtype == torch.float16 and not prequant
    tile, chunk = mx_tile(target, batch, m, n, k, two, batch_invariant())
    steps = -(-k // tile.depth)
    parts = -(-steps // chunk)
    into = y if parts == 1 else a.new_empty((parts, m, n), dtype=torch.float32)
    scale = b_scale if a_scale is None else a_scale
    a_scale_row = 0 if a_scale is None else a_scale.stride(0)
    rows = (a.stride(1), b.stride(1), b_scale.stride(1), into.stride(1) if parts == 1 else n)
    batches = (0, 0, 0, m * n if parts > 1 else 0)
    if batch > 1:
        batches = (a.stride(0), b.stride(0), b_scale.stride(0), y.stride(0))
    strides = [n for pair in zip(batches, rows, strict=True) for n in pair]
    native = kind != "float" and target.arch in MATRIX_UNITS_WITH_SCALES
    constants = (
        *(tile.rows, tile.columns, tile.depth, tile.group, DIES.get(family(target), 1), tile.swap, parts > 1),
        *(k % tile.depth == 0, shuffled, kind, prequant, native),
        *(target.arch.startswith("gfx9") and not INTERPRETED.value, bias is not None),
        codes_first(target, tile, kind == "float" and not prequant),
    )
    grid = -(-m // tile.rows) * -(-n // tile.columns) * batch * parts
    bias_at = y if bias is None else bias.contiguous()
    tensors = (a, scale, b, b_scale, bias_at, into)
    _mx(
        grid, tensors, (m, n, chunk, a_scale_row, k, *strides), constants, tile.num_warps, tile.num_stages, tile.options
    )
    if parts > 1:
        add_parts(into, y, bias)
    return y


def _alone(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    a_scale: Tensor | None = None,
    bias: Tensor | None = None,
    prequant: bool = False,
    shuffled: bool = False,
) -> Tensor:
    """a [..., K] · b [N, K]ᵀ as a batch of one."""
    flat = as_rows(a)[0].view(-1, a.shape[-1])
    if a_scale is not None:
        a_scale = in_reach(a_scale.reshape(-1, a_scale.shape[-1]))
    b, b_scale = (t.contiguous() if shuffled else in_reach(t) for t in (b, b_scale))
    y = a.new_empty((*a.shape[:-1], b.shape[0]), dtype=dtype)
    rows = y.view(1, -1, b.shape[0])
    multiply_mx(flat[None], b[None], b_scale[None], rows, a_scale, bias, prequant, shuffled)
    return y


def _fp8_refusal(target: Platform) -> Predicate:
    return lambda a, b, a_scale, b_scale, out_dtype: fp8_predicate(target, a.dtype) or too_wide(a, b)


@PROVIDER.implements("gemm_a8wfp4", refuses=_fp8_refusal, batch_invariant=True)
def gemm_a8wfp4(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    return _alone(a, b, b_scale, out_dtype or torch.bfloat16, a_scale)


@PROVIDER.implements(
    "gemm_a16wfp4",
    refuses=lambda target: lambda a, b, b_scale, bias, out_dtype, prequant: too_wide(a, b),
    batch_invariant=True,
)
def gemm_a16wfp4(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    prequant: bool = False,
) -> Tensor:
    return _alone(a, b, b_scale, out_dtype or a.dtype, None, bias, prequant)


@PROVIDER.implements(
    "gemm_a4w4",
    refuses=lambda target: lambda a, b, a_scale, b_scale, bias, out_dtype, layout: too_wide(a, b),
    batch_invariant=True,
)
def gemm_a4w4(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
) -> Tensor:
    return _alone(a, b, b_scale, out_dtype or torch.bfloat16, a_scale, bias, shuffled=layout != "plain")


@PROVIDER.implements(
    "bmm_a16wfp4",
    refuses=lambda target: lambda x, w, w_scale, transpose_bm, out_dtype, prequant: too_wide(x, w),
    batch_invariant=True,
)
def bmm_a16wfp4(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    transpose_bm: bool = False,
    out_dtype: torch.dtype | None = None,
    prequant: bool = False,
) -> Tensor:
    b, m, _ = x.shape
    shape = (m, b, w.shape[1]) if transpose_bm else (b, m, w.shape[1])
    y = x.new_empty(shape, dtype=out_dtype or x.dtype)
    multiply_mx(
        in_reach(x), in_reach(w), in_reach(w_scale), y.transpose(0, 1) if transpose_bm else y, prequant=prequant
    )
    return y
