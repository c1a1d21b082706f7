"""Device functions of attention over paged caches: where a tile is, its keys, the steps over them, and what is stored.

A tile is some query rows of one sequence times the heads of one kv head (or a part of them): row r is token r // heads
of the tile and head r % heads. Scores are in base 2 (see `softmax`). Windows that are open on a side come as `OPEN`.
"""

import triton
import triton.language as tl

from aiter_ops.providers.triton.common import encode, inverse_of
from aiter_ops.providers.triton.division import divided, divided_by
from aiter_ops.providers.triton.gemm.body import of_tile

from .softmax import LOG2_E, capped, inverse_total, joined, lse_of, stepped


@triton.jit
def sequence_of(cu_ptr, tile, batch, TOKENS: tl.constexpr):
    """(sequence, tile in it) of a tile, where sequence b has the tiles from cu[b] // TOKENS + b on, TOKENS rows each;
    some tiles are past the rows of their sequence.
    """
    low = tile * 0
    high = low + batch
    while high - low > 1:
        middle = (low + high) >> 1
        full, _ = divided(tl.load(cu_ptr + middle), TOKENS)
        before = full + middle <= tile
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    full, _ = divided(tl.load(cu_ptr + low), TOKENS)
    return low, tile - full - low


@triton.jit
def keys_of(used, rows, first, last, left, right, STEP: tl.constexpr, LEFT: tl.constexpr):
    """The keys [begin, end) that rows first to last (not included) of a sequence see, from a whole step on. LEFT: `left` is
    not `OPEN`, or may be.
    """
    end = tl.minimum(used, used - rows + last + right)
    begin = 0
    if LEFT:
        before, _ = divided(tl.maximum(used - rows + first - left, 0), STEP)
        begin = before * STEP
    return begin, end


@triton.jit
def shares_of(begin, end, splits, by_splits, splits_shift, STEP: tl.constexpr):
    """The steps over keys [begin, end), and those of a part, two at least: part i has the steps from i times as many on.
    No keys are one step, for a tile without keys has a part too, whose rows become zeros.
    """
    steps, _ = divided(tl.maximum(end - begin, 1) + STEP - 1, STEP)
    each, _ = divided_by(steps + splits - 1, splits, by_splits, splits_shift)
    return steps, tl.maximum(each, 2)


@triton.jit
def descale(ptr, sequence, kv_head, per_sequence, per_head, given, SCALED: tl.constexpr):
    """The factor on the values of a kv head; 1 where none is given. SCALED: some may be."""
    factor = 1.0
    if SCALED:
        factor = tl.load(ptr + sequence * per_sequence + kv_head * per_head, mask=given != 0, other=1.0)
    return factor


@triton.jit
def in_fp16(q):
    """bf16 q [M, width] as fp16 times a power of two for each row [M]: none of its bits is lost, but of elements below
    2^-28 of the row's largest. FP8 becomes fp16 in fewer instructions than bf16, and both are exact.
    """
    wide = q.to(tl.float32)
    top = tl.max(tl.abs(wide), axis=1).to(tl.int32, bitcast=True) & 0x7F800000
    # the row's largest goes to 2^14; far from the ends of fp32's exponents both powers are normal numbers
    top = tl.minimum(tl.maximum(top, 15 << 23), 253 << 23)
    up = ((253 << 23) - top + (15 << 23)).to(tl.float32, bitcast=True)
    down = (top - (14 << 23)).to(tl.float32, bitcast=True)
    return (wide * up[:, None]).to(tl.float16), down


@triton.jit
def summed_values(
    q,
    k_base,
    v_base,
    table,
    slopes,
    at,
    low,
    high,
    start,
    end,
    factor,
    cap,
    k_block,
    k_position,
    v_block,
    v_position,
    LEFT: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
    SHUFFLED: tl.constexpr,
    K_FIRST: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    N: tl.constexpr,
):
    """Steps over the keys [start, end) for q [M, width]: the sum of values [M, width], and the softmax state [M].

    k_base, v_base: the caches at the tile's kv head. table: the sequence's blocks. at, low, high [M]: of each row its
    position, and the keys [low, high) it sees; low counts where LEFT, and is not above high.
    factor [M], cap: of the scores, in base 2. Where a block holds whole steps, a step reads one entry of the table.
    K_FIRST: see `gemm.body.summed`.
    """
    M: tl.constexpr = q.shape[0]
    WIDTH: tl.constexpr = q.shape[1]
    X: tl.constexpr = 128 // k_base.dtype.element_ty.primitive_bitwidth
    d = tl.arange(0, WIDTH)
    acc = tl.zeros([M, WIDTH], tl.float32)
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    for first in range(start, end, N):
        key = first + tl.arange(0, N)
        # keys past the end repeat the last one, or pieces of X of them the last piece: nothing there is waited for, and
        # their scores are -inf
        held = tl.minimum(key // X, (end - 1) // X) * X + key % X if SHUFFLED else tl.minimum(key, end - 1)
        if BLOCK % N == 0:
            page = tl.load(table + first // BLOCK).to(tl.int64)
            place = held - first // BLOCK * BLOCK
        else:
            page = tl.load(table + held // BLOCK).to(tl.int64)
            place = held % BLOCK
        if SHUFFLED:
            k_at = of_tile(page * k_block + place * X, d // X * (BLOCK * X) + d % X, K_FIRST)
            v_at = (page * v_block + place // X * (D * X) + place % X)[:, None] + (d * X)[None, :]
        elif BLOCK % N == 0:
            k_at = page * k_block + of_tile(place * k_position, d, K_FIRST)
            v_at = page * v_block + ((place * v_position)[:, None] + d[None, :])
        else:
            k_at = of_tile(page * k_block + place * k_position, d, K_FIRST)
            v_at = (page * v_block + place * v_position)[:, None] + d[None, :]
        if D == WIDTH:
            k = tl.load(k_base + k_at).to(q.dtype)
        else:
            k = tl.load(k_base + k_at, mask=(d < D)[:, None] if K_FIRST else (d < D)[None, :], other=0.0).to(q.dtype)
        score = tl.dot(q, k if K_FIRST else k.T, input_precision="ieee") * factor[:, None]
        if CAPPED:
            score = capped(score, cap)
        if ALIBI:
            score -= slopes[:, None] * tl.abs(at[:, None] - key[None, :]).to(tl.float32)
        if LEFT:
            # one comparison of numbers without sign
            sees = (key[None, :] - low[:, None]).to(tl.uint32, bitcast=True) < (high - low).to(tl.uint32, bitcast=True)[
                :, None
            ]
        else:
            sees = key[None, :] < high[:, None]
        weights, before, peak, total = stepped(tl.where(sees, score, float("-inf")), peak, total)
        if D == WIDTH:
            v = tl.load(v_base + v_at).to(q.dtype)
        else:
            v = tl.load(v_base + v_at, mask=(d < D)[None, :], other=0.0).to(q.dtype)
        if SHUFFLED:
            # of the last piece, what is past the end may be anything
            v = tl.where((key < end)[:, None], v, 0.0)
        acc = tl.dot(weights.to(q.dtype), v, acc * before[:, None], input_precision="ieee")
    return acc, peak, total


@triton.jit
def stored(
    acc,
    peak,
    total,
    factor,
    sinks_ptr,
    out_scale_ptr,
    out_ptr,
    lse_ptr,
    head,
    out_at,
    lse_at,
    there,
    D: tl.constexpr,
    SINKS: tl.constexpr,
    TOP: tl.constexpr,
    LSE: tl.constexpr,
):
    """Stores results of rows: acc [M, width] sums of values, peak and total [M] their state, factor on the values.

    head, out_at, lse_at, there: [M], of each row its head, where its result and LSE go, and whether it is one. TOP: the
    largest code of an FP8 result, which has a scale; else 0.
    """
    if SINKS:
        # one more score in the denominator
        sink = tl.load(sinks_ptr + head, mask=there, other=0.0).to(tl.float32) * LOG2_E
        mine, _, peak, total = joined(peak, total, sink, 1.0)
        factor = mine * factor
    y = acc * (inverse_total(total) * factor)[:, None]
    d = tl.arange(0, acc.shape[1])
    if TOP > 0:
        y = encode(y, inverse_of(tl.load(out_scale_ptr)), out_ptr.dtype.element_ty, TOP, True)
    written = there[:, None] & (d < D)[None, :]
    tl.store(out_ptr + out_at[:, None] + d[None, :], y.to(out_ptr.dtype.element_ty), mask=written)
    if LSE:
        tl.store(lse_ptr + lse_at, lse_of(peak, total), mask=there)
