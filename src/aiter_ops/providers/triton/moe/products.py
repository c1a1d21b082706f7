"""Device functions of grouped products: which rows a program takes, one tile of A·Wᵀ with its scales."""

import triton
import triton.language as tl

BLOCK = tl.constexpr(128)
"""Columns, and rows of a weight, that share a scale with SCALES ``block``."""


@triton.jit
def local_expert(id, map_ptr, experts, mapped, MAP: tl.constexpr):
    """The index among the `experts` here of each expert id, or -1; `mapped`: how many ids the map knows."""
    if MAP:
        known = (id >= 0) & (id < mapped)
        id = tl.load(map_ptr + id, mask=known, other=-1)
    return tl.where((id >= 0) & (id < experts), id, -1)


@triton.jit
def taken(
    block,
    ids_ptr,
    map_ptr,
    owner_ptr,
    valid_ptr,
    rows,
    experts,
    mapped,
    k,
    ROUTE: tl.constexpr,
    MAP: tl.constexpr,
    VALID: tl.constexpr,
    BM: tl.constexpr,
):
    """(expert or -1, BM rows, `rows` where there is none) of block number `block`.

    ROUTE ``sorted``: ids_ptr holds slots grouped by expert, owner_ptr the expert of each block. ``slot``: one slot a
    block, ids_ptr holds its expert id. ``all``: rows in order, one expert.
    """
    lane = tl.arange(0, BM)
    if ROUTE == "sorted":
        expert = tl.load(owner_ptr + block)
        return expert, tl.load(ids_ptr + block * BM + lane)
    if VALID:
        valid = tl.load(valid_ptr)
    if ROUTE == "slot":
        expert = local_expert(tl.load(ids_ptr + block), map_ptr, experts, mapped, MAP)
        if VALID:
            expert = tl.where(block // k < valid, expert, -1)
        return expert, tl.where(lane == 0, block, rows)
    row = block * BM + lane
    if VALID:
        row = tl.where(row < valid, row, rows)
    return tl.where(tl.min(row, axis=0) < rows, 0, -1), row


@triton.jit
def product(
    a_at,
    a_there,
    a_scale_at,
    w_at,
    w_scale_at,
    w_scale_at_odd,
    K,
    a_scale_step,
    w_scale_step,
    SCALES: tl.constexpr,
    PAIRS: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """fp32 [BM, BN] of A·Wᵀ over K columns, scaled.

    a_at [BM, 1], w_at [1, BN]: where rows start, unit stride. SCALES ``none``; ``row``: a_scale_at [BM] and
    w_scale_at [BN] hold one scale a row; ``block``: a_scale_at [BM] points to scales of 128 columns, a_scale_step
    apart, w_scale_at to that of the tile's rows (of the even ones with PAIRS, w_scale_at_odd of the odd ones),
    w_scale_step apart. WHOLE: BK divides K.
    """
    whole: tl.constexpr = a_at.dtype.element_ty == tl.int8
    acc = tl.zeros([BM, BN], tl.int32 if whole else tl.float32)
    column = tl.arange(0, BK)
    odd = (tl.arange(0, BN) & 1) == 1
    a_at += column[None, :]
    w_at += column[:, None]
    for start in range(0, K, BK):
        if WHOLE:
            a = tl.load(a_at, mask=a_there[:, None], other=0.0)
            w = tl.load(w_at)
        else:
            inside = column < K - start
            a = tl.load(a_at, mask=a_there[:, None] & inside[None, :], other=0.0)
            w = tl.load(w_at, mask=inside[:, None], other=0.0)
        if SCALES == "block":
            part = tl.dot(a, w)
            a_scale = tl.load(a_scale_at, mask=a_there, other=0.0)
            w_scale = tl.load(w_scale_at)
            if PAIRS:
                both = tl.where(odd, tl.load(w_scale_at_odd), w_scale)
                acc += part * (a_scale[:, None] * both[None, :])
                w_scale_at_odd += w_scale_step
            else:
                acc += part * (a_scale * w_scale)[:, None]
            a_scale_at += a_scale_step
            w_scale_at += w_scale_step
        elif whole:
            acc = tl.dot(a, w, acc, out_dtype=tl.int32)
        elif a_at.dtype.element_ty == tl.float32:
            acc = tl.dot(a, w, acc, input_precision="ieee")
        else:
            acc = tl.dot(a, w, acc, max_num_imprecise_acc=BLOCK)
        a_at += BK
        w_at += BK
    acc = acc.to(tl.float32)
    if SCALES == "row":
        acc = acc * tl.load(a_scale_at, mask=a_there, other=0.0)[:, None] * tl.load(w_scale_at)[None, :]
    return acc
