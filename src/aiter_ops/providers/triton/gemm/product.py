"""The kernel of all products of 8-, 16- and 32-bit factors on any GPU: plain loads, and sums split over programs."""

from __future__ import annotations

import triton
import triton.language as tl

from aiter_ops.providers.triton.division import divided

from .body import across, finished, let_next_start, of_tile, summed, tile_of


@triton.jit(do_not_specialize=["M", "a_scale_block", "chunk"])
def product_kernel(
    a_ptr,
    b_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    a_scale_block,
    chunk,
    N,
    K,
    a_row,
    b_row,
    a_scale_row,
    b_scale_row,
    b_scale_block,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    DIES: tl.constexpr,
    SWAP: tl.constexpr,
    APART: tl.constexpr,
    SPLIT: tl.constexpr,
    EARLY: tl.constexpr,
    EVEN: tl.constexpr,
    SHUFFLED: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    BIAS: tl.constexpr,
    K_FIRST: tl.constexpr,
):
    """y = a · bᵀ of a [M, K] and b [N, K], a tile of BM × BN a program, K in steps of BK.

    SPLIT: a program does only `chunk` steps, and y is [parts, M, N], the parts' sums as they are. EARLY: the kernel
    that adds them is started while this one runs.
    SCALES: ``none``; ``row``: a scale for every row of a and of b; ``block``: one for BLOCK_STEPS steps of a row of a
    and of BLOCK_ROWS rows of b, which multiply the step's sum.
    EVEN: BK divides K. SHUFFLED: b lies in tiles of 16 rows and pieces of 16 bytes (`shuffle_weight`). K_FIRST: see `summed`.
    """
    INT: tl.constexpr = a_ptr.dtype.element_ty == tl.int8
    SUM: tl.constexpr = tl.int32 if INT else tl.float32
    # at least one step: no branch for none (AMD's back end takes the bounds of sums from these)
    tl.assume(K > 0)
    tl.assume(K <= 4194304)  # `too_wide`
    across_m, across_n = tl.cdiv(M, BM) if GROUP else 1, tl.cdiv(N, BN)
    pid = tl.program_id(0)
    first, last = 0, tl.cdiv(K, BK)
    if EARLY:
        let_next_start()
    if SPLIT:
        part, pid = divided(pid, across_m * across_n)
        first = part * chunk
        last = tl.minimum(first + chunk, last)
    tile_m, tile_n = tile_of(pid, across_m, across_n, GROUP, DIES)
    m0, n0 = tile_m * BM, tile_n * BN
    rm, rn, rk = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    # rows beyond b's end repeat its last one: their results are not stored
    row, col = tl.minimum(m0 + rm, M - 1), tl.minimum(n0 + rn, N - 1)
    there = (rm < M - m0)[:, None]
    # offsets inside a tile fit 32 bits
    a_at = rm[:, None] * a_row + rk[None, :]
    a_base = a_ptr + m0.to(tl.int64) * a_row + first * BK
    rn = col - n0
    if SHUFFLED:
        PIECE: tl.constexpr = 128 // b_ptr.dtype.element_ty.primitive_bitwidth
        b_at = of_tile(rn // 16 * (16 * K) + rn % 16 * PIECE, rk // PIECE * (16 * PIECE) + rk % PIECE, K_FIRST)
        b_base = b_ptr + n0.to(tl.int64) * K + first * (BK * 16)
        b_step = BK * 16
    else:
        b_at = rn[None, :] * b_row + rk[:, None] if K_FIRST else rn[:, None] * b_row + rk[None, :]
        b_base = b_ptr + n0.to(tl.int64) * b_row + first * BK
        b_step = BK
    ONE_BLOCK: tl.constexpr = BLOCK_ROWS % BN == 0
    if SCALES == "block":
        a_scale_base = a_scale_ptr + m0.to(tl.int64) * a_scale_row
        a_scale_at = (row - m0) * a_scale_row
        b_scale_at = b_scale_ptr + (n0 // BLOCK_ROWS if ONE_BLOCK else col // BLOCK_ROWS) * b_scale_row
        # read a step ahead, so that the wait is over when they are needed
        a_scale = tl.load(a_scale_base + first // BLOCK_STEPS * a_scale_block + a_scale_at)
        b_scale = tl.load(b_scale_at + first // BLOCK_STEPS * b_scale_block)
    acc = tl.zeros([BN, BM] if SWAP else [BM, BN], SUM)
    for step in range(first, last):
        if EVEN:
            a = tl.load(a_base + a_at, mask=there, other=0.0)
            b = tl.load(b_base + b_at)
        else:
            inside = (rk < K - step * BK)[None, :]
            a = tl.load(a_base + a_at, mask=there & inside, other=0.0)
            b = tl.load(b_base + b_at, mask=(rk < K - step * BK)[:, None] if K_FIRST else inside, other=0.0)
        if SCALES == "block":
            ahead = tl.minimum(step + 1, last - 1) // BLOCK_STEPS
            next_a_scale = tl.load(a_scale_base + ahead.to(tl.int64) * a_scale_block + a_scale_at)
            next_b_scale = tl.load(b_scale_at + ahead.to(tl.int64) * b_scale_block)
            part_sum = summed(tl.zeros([BN, BM] if SWAP else [BM, BN], SUM), a, b, SWAP, False, K_FIRST)
            if ONE_BLOCK:
                acc += part_sum * across(a_scale * b_scale, rn, SWAP)[0]
            else:
                of_rows, of_columns = across(a_scale, b_scale, SWAP)
                acc += part_sum * of_rows * of_columns
            a_scale, b_scale = next_a_scale, next_b_scale
        else:
            acc = summed(acc, a, b, SWAP, APART, K_FIRST)
        a_base += BK
        b_base += b_step
    rn = tl.arange(0, BN)
    y_base = y_ptr + m0.to(tl.int64) * N + n0
    if SPLIT:
        y_base += part.to(tl.int64) * M * N
        y = acc
    else:
        y = finished(
            acc, a_scale_ptr, b_scale_ptr, bias_ptr, row, col, a_scale_row, b_scale_row, SCALES, BIAS, SWAP
        ).to(y_ptr.dtype.element_ty)
    y_rows, y_columns = across(rm, rn, SWAP)
    tl.store(y_base + y_rows * N + y_columns, y, mask=(y_rows < M - m0) & (y_columns < N - n0))
