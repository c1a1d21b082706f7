"""The kernel of large products on NVIDIA's Hopper: factors come through tensor descriptors, by its copy engine (TMA)."""

from __future__ import annotations

import triton
import triton.language as tl

from .body import finished, let_next_start, summed, tile_of


@triton.jit
def _added(acc, a, b, a_scale, b_scale, SCALES: tl.constexpr, APART: tl.constexpr):
    """acc + a · bᵀ, the product times its scales where SCALES is ``block``."""
    if SCALES == "block":
        return acc + summed(tl.zeros_like(acc), a, b, False, False) * (a_scale * b_scale)[:, None]
    else:
        return summed(acc, a, b, False, APART)


@triton.jit
def _stored(acc, y_ptr, a_scale_ptr, b_scale_ptr, bias_ptr, m0, n0, M, N, a_scale_row, b_scale_row,
            SPLIT: tl.constexpr, SCALES: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    rm, rn = tl.arange(0, acc.shape[0]), tl.arange(0, acc.shape[1])
    if SPLIT:
        y = acc
    else:
        row, col = tl.minimum(m0 + rm, M - 1), tl.minimum(n0 + rn, N - 1)
        y = finished(acc, a_scale_ptr, b_scale_ptr, bias_ptr, row, col, a_scale_row, b_scale_row, SCALES, BIAS, False)
    at = y_ptr + m0.to(tl.int64) * N + n0 + (rm * N)[:, None] + rn[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=(rm < M - m0)[:, None] & (rn < N - n0)[None, :])


@triton.jit(do_not_specialize=["M", "a_scale_block", "chunk"])
def described_kernel(
    a_desc,
    b_desc,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    a_scale_block,
    chunk,
    N,
    K,
    a_scale_row,
    b_scale_row,
    b_scale_block,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    HALVES: tl.constexpr,
    GROUP: tl.constexpr,
    APART: tl.constexpr,
    SPLIT: tl.constexpr,
    EARLY: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    BIAS: tl.constexpr,
):
    """As `product_kernel`, a tile of BM × (HALVES · BN) a program. BLOCK_ROWS is a multiple of BN.

    A product that waits to be scaled needs as many registers as the sums themselves; in halves it needs half as many,
    and two programs share a multiprocessor: one multiplies while the other scales.
    """
    SUM: tl.constexpr = tl.int32 if a_desc.dtype == tl.int8 else tl.float32
    TWO: tl.constexpr = HALVES == 2
    ONE_BLOCK: tl.constexpr = BLOCK_ROWS % (BN * HALVES) == 0
    across_m, across_n = tl.cdiv(M, BM) if GROUP else 1, tl.cdiv(N, BN * HALVES)
    pid = tl.program_id(0)
    first, last = 0, tl.cdiv(K, BK)
    if EARLY:
        let_next_start()
    if SPLIT:
        part = pid // (across_m * across_n)
        pid = pid % (across_m * across_n)
        first = part * chunk
        last = tl.minimum(first + chunk, last)
        y_ptr += part.to(tl.int64) * M * N
    tile_m, tile_n = tile_of(pid, across_m, across_n, GROUP, 1)
    m0, n0 = tile_m * BM, tile_n * (BN * HALVES)
    sum0 = tl.zeros([BM, BN], SUM)
    sum1 = sum0
    a_scale, scale0, scale1 = 0.0, 0.0, 0.0
    if SCALES == "block":
        a_scale_base = a_scale_ptr + m0.to(tl.int64) * a_scale_row
        a_scale_at = tl.minimum(tl.arange(0, BM), M - 1 - m0) * a_scale_row
        scale0_at = b_scale_ptr + n0 // BLOCK_ROWS * b_scale_row
        scale1_at = b_scale_ptr + tl.minimum(n0 + BN, N - 1) // BLOCK_ROWS * b_scale_row
        # read a step ahead, so that the wait is over when they are needed
        block = first // BLOCK_STEPS
        a_scale = tl.load(a_scale_base + block * a_scale_block + a_scale_at)
        scale0 = tl.load(scale0_at + block * b_scale_block)
        scale1 = scale0 if ONE_BLOCK else tl.load(scale1_at + block * b_scale_block)
    for step in range(first, last):
        a = a_desc.load([m0, step * BK])
        b = b_desc.load([n0, step * BK])
        if TWO:
            other = b_desc.load([n0 + BN, step * BK])
        now, now0, now1 = a_scale, scale0, scale1
        if SCALES == "block":
            ahead = tl.minimum(step + 1, last - 1) // BLOCK_STEPS
            a_scale = tl.load(a_scale_base + ahead.to(tl.int64) * a_scale_block + a_scale_at)
            scale0 = tl.load(scale0_at + ahead * b_scale_block)
            scale1 = scale0 if ONE_BLOCK else tl.load(scale1_at + ahead * b_scale_block)
        sum0 = _added(sum0, a, b, now, now0, SCALES, APART)
        if TWO:
            sum1 = _added(sum1, a, other, now, now1, SCALES, APART)
    _stored(sum0, y_ptr, a_scale_ptr, b_scale_ptr, bias_ptr, m0, n0, M, N, a_scale_row, b_scale_row,
            SPLIT, SCALES, BIAS)  # fmt: skip
    if TWO:
        _stored(sum1, y_ptr, a_scale_ptr, b_scale_ptr, bias_ptr, m0, n0 + BN, M, N, a_scale_row, b_scale_row,
                SPLIT, SCALES, BIAS)  # fmt: skip
