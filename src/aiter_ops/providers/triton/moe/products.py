"""Device functions of grouped products: which rows a program takes, one tile of A·Wᵀ with its scales."""

import triton
import triton.language as tl

from aiter_ops.providers.triton.gemm.body import across, of_tile, summed
from aiter_ops.providers.triton.gemm.mx_body import added

SORTED = tl.constexpr(0)
SINGLE = tl.constexpr(1)
ALL = tl.constexpr(2)


@triton.jit
def local_expert(id, map_ptr, experts, mapped):
    """The index among the `experts` here of each expert id, or -1; mapped: how many ids the map knows, 0 without one."""
    known = (id >= 0) & (id < mapped)
    id = tl.where(mapped > 0, tl.load(map_ptr + id, mask=known, other=-1), id)
    return tl.where((id >= 0) & (id < experts), id, -1)


@triton.jit
def valid_tokens(valid_ptr, counted):
    """How many tokens are no padding; counted: whether valid_ptr says so, else all."""
    return tl.load(valid_ptr, mask=counted != 0, other=2147483647)


@triton.jit
def taken(block, ids_ptr, map_ptr, owner_ptr, valid_ptr, route, rows, experts, mapped, k, counted, BM: tl.constexpr):
    """(expert or -1, BM rows, `rows` where there is none) of block number `block`.

    route SORTED: ids_ptr holds slots grouped by expert, owner_ptr the expert of each block. SINGLE: one slot a block,
    ids_ptr holds its expert's id, k slots a token. ALL: rows in order, one expert.
    """
    lane = tl.arange(0, BM)
    valid = valid_tokens(valid_ptr, counted)
    in_order = block * BM + lane
    end = tl.minimum(rows, valid)
    # one load in use of each
    owner = tl.load(owner_ptr + block, mask=route == SORTED, other=-1)
    id = tl.load(ids_ptr + block, mask=(route == SINGLE) & (block // k < valid), other=-1)
    slot = tl.load(ids_ptr + in_order, mask=(route == SORTED) & (lane >= 0), other=0)
    single = local_expert(id, map_ptr, experts, mapped)
    expert = tl.where(route == SORTED, owner, tl.where(route == SINGLE, single, tl.where(block * BM < end, 0, -1)))
    in_order = tl.where(in_order < end, in_order, rows)
    row = tl.where(route == SORTED, slot, tl.where(route == SINGLE, tl.where(lane == 0, block, rows), in_order))
    return expert, row


@triton.jit
def product(
    a_at,
    a_there,
    a_scale_at,
    w_ptr,
    w_index,
    w_scale_at,
    odd_scale_at,
    K,
    w_row,
    a_scale_step,
    w_scale_step,
    SCALES: tl.constexpr,
    PAIRS: tl.constexpr,
    WHOLE: tl.constexpr,
    SWAP: tl.constexpr,
    APART: tl.constexpr,
    SHUFFLED: tl.constexpr,
    K_FIRST: tl.constexpr,
    MX: tl.constexpr,
    FAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """fp32 [BM, BN] of A·Wᵀ over K columns, scaled; rows of A that are not `a_there` give anything.

    a_at [BM]: where rows of A start; w_index [BN]: rows of W [*, w_row] at w_ptr, below 2^31 elements.
    SCALES ``none``; ``row``: a_scale_at [BM] and w_scale_at [BN] point to one scale a row; ``block``: a_scale_at [BM]
    points to scales of 128 columns, a_scale_step apart, w_scale_at to those of the tile's rows (with PAIRS, of its even
    ones, and odd_scale_at of the odd), w_scale_step apart; ``a``: a_scale_at alone.
    MX ``none``; ``plain``, ``native`` (see `added`, and for FAST): W is packed MXFP4, w_scale_at [BN] points to the
    exponents of 32 columns, w_scale_step apart. SHUFFLED: W lies in tiles of 16 rows and pieces of 16 bytes
    (`shuffle_weight`). K_FIRST: see `summed`, without MX. WHOLE: BK divides K. SWAP, APART: see `summed`.
    """
    CODES: tl.constexpr = a_at.dtype.element_ty.primitive_bitwidth == 8
    SUM: tl.constexpr = tl.int32 if a_at.dtype.element_ty == tl.int8 else tl.float32
    PACKED: tl.constexpr = 1 if MX == "none" else 2
    column = tl.arange(0, BK)
    byte = tl.arange(0, BK // PACKED)
    odd = (tl.arange(0, BN) & 1) == 1
    a_at = a_at[:, None] + column[None, :]
    if SHUFFLED:
        PIECE: tl.constexpr = 128 // w_ptr.dtype.element_ty.primitive_bitwidth
        w_at = w_index // 16 * (16 * w_row) + w_index % 16 * PIECE
        w_at = of_tile(w_at, byte // PIECE * (16 * PIECE) + byte % PIECE, K_FIRST)
        w_step = BK // PACKED * 16
    else:
        w_at = of_tile(w_index * w_row, byte, K_FIRST)
        w_step = BK // PACKED
    if MX != "none":
        group = tl.arange(0, BK // 32)
        w_scale_at = w_scale_at[:, None] + (group * w_scale_step)[None, :]
        top = tl.zeros([BN, BK // 32], tl.uint8)
    if SCALES == "block":
        # read a step ahead, so that the wait is over when they are needed
        a_scale, w_scale, odd_scale = tl.load(a_scale_at), tl.load(w_scale_at), tl.load(odd_scale_at)
    acc = tl.zeros([BN, BM] if SWAP else [BM, BN], SUM)
    steps = tl.cdiv(K, BK)
    for step in range(0, steps):
        if WHOLE:
            a = tl.load(a_at, mask=a_there[:, None], other=0.0)
            w = tl.load(w_ptr + w_at)
        else:
            inside = (column < K - step * BK)[None, :]
            a = tl.load(a_at, mask=a_there[:, None] & inside, other=0.0)
            w_inside = byte * PACKED < K - step * BK
            w = tl.load(w_ptr + w_at, mask=w_inside[:, None] if K_FIRST else w_inside[None, :], other=0.0)
        if MX != "none":
            if WHOLE:
                exponents = tl.load(w_scale_at)
            else:
                exponents = tl.load(w_scale_at, mask=(group * 32 < K - step * BK)[None, :], other=0)
            acc = added(
                acc, a, exponents, w, exponents, "fp8" if CODES else "float", False, MX == "native", SWAP, FAST, K_FIRST
            )
            if FAST:
                top = tl.maximum(top, exponents)
            w_scale_at += BK // 32 * w_scale_step
        elif SCALES == "block":
            ahead = tl.minimum(step + 1, steps - 1)
            next_a = tl.load(a_scale_at + ahead * a_scale_step)
            next_w = tl.load(w_scale_at + ahead * w_scale_step)
            part = summed(tl.zeros([BN, BM] if SWAP else [BM, BN], SUM), a, w, SWAP, False, K_FIRST)
            if PAIRS:
                next_odd = tl.load(odd_scale_at + ahead * w_scale_step)
                of_rows, of_columns = across(a_scale, tl.where(odd, odd_scale, w_scale), SWAP)
                acc += part * (of_rows * of_columns)
                odd_scale = next_odd
            else:
                acc += part * across(a_scale * w_scale, column, SWAP)[0]
            a_scale, w_scale = next_a, next_w
        else:
            acc = summed(acc, a, w, SWAP, APART, K_FIRST)
        a_at += BK
        w_ptr += w_step
    if FAST:
        acc = tl.where(across(column, tl.max(top, axis=1) == 255, SWAP)[1], float("nan"), acc)
    acc = acc.to(tl.float32)
    if SCALES == "row":
        of_rows, of_columns = across(tl.load(a_scale_at), tl.load(w_scale_at), SWAP)
        acc = acc * of_rows * of_columns
    elif SCALES == "a":
        acc = acc * across(tl.load(a_scale_at), column, SWAP)[0]
    return acc.T if SWAP else acc
