"""The kernel of attention over packed sequences: one program does a block of queries of one head of one sequence.

As FlashAttention-2 (arXiv:2307.08691): a program goes over the keys in steps and keeps the largest score, the sum of
weights and the sum of weighted values of each row. Steps that every row sees whole come without masks.
"""

import triton
import triton.language as tl

from aiter_ops.providers.triton.division import divided_by

from .softmax import LOG2_E, capped, inverse_total, lse_of, stepped


@triton.jit
def tile_mask(row, rows, column, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    """Which of a tile's rows and columns are there. EDGE: rows may end in it; BLOCK columns hold COLUMNS."""
    if EDGE and BLOCK != COLUMNS:
        return (row < rows)[:, None] & (column < COLUMNS)[None, :]
    elif EDGE:
        return (row < rows)[:, None]
    else:
        return (column < COLUMNS)[None, :]


@triton.jit
def load_tile(
    at,
    row,
    rows,
    column,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    EDGE: tl.constexpr,
    K_FIRST: tl.constexpr = False,
):
    """A tile, with zeros where `tile_mask` says that nothing is; without a mask where it says so nowhere. K_FIRST: `at` and
    the tile have the columns first.
    """
    if (EDGE or BLOCK != COLUMNS) and K_FIRST:
        return tl.load(at, mask=tile_mask(row, rows, column, COLUMNS, BLOCK, EDGE).T, other=0.0)
    elif EDGE or BLOCK != COLUMNS:
        return tl.load(at, mask=tile_mask(row, rows, column, COLUMNS, BLOCK, EDGE), other=0.0)
    else:
        return tl.load(at)


@triton.jit
def scaled_step(score, scale, peak, total):
    """`stepped` of score · scale, for a scale > 0, as one multiply-add an element."""
    best = tl.maximum(peak, tl.max(score, axis=1) * scale)
    base = tl.where(best == float("-inf"), 0.0, best)
    weights = tl.exp2(score * scale - base[:, None])
    factor = tl.exp2(peak - base)
    return weights, factor, best, total * factor + tl.sum(weights, axis=1)


@triton.jit
def over_keys(
    values,
    peak,
    total,
    q,
    q_rest,
    at,
    low,
    count,
    k_at,
    k_rest_at,
    v_at,
    first,
    last,
    keys,
    k_row,
    v_row,
    scale,
    cap,
    slope,
    D: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    BF16: tl.constexpr,
    K_FIRST: tl.constexpr,
    EDGE: tl.constexpr,
):
    """The state (values, peak, total) after the keys `first` to `last`, a multiple of KEYS apart but for the end.

    EDGE: not every row sees all keys of a step, but `count` keys from `low` on, or the sequence ends in it.
    """
    step = tl.arange(0, KEYS)
    main, rest, wide = tl.arange(0, D_MAIN), D_MAIN + tl.arange(0, max(D_REST, 1)), tl.arange(0, DV_BLOCK)
    for start in range(first, last, KEYS):
        key = start + step
        beyond = tl.zeros([], tl.int64) + start
        k = load_tile(k_at + beyond * k_row, key, keys, main, D, D_MAIN, EDGE, K_FIRST)
        score = tl.dot(q, k if K_FIRST else k.T, input_precision="ieee")
        if D_REST:
            k_rest = load_tile(k_rest_at + beyond * k_row, key, keys, rest, D, D_MAIN + D_REST, EDGE, K_FIRST)
            score = tl.dot(q_rest, k_rest if K_FIRST else k_rest.T, score, input_precision="ieee")
        if CAP:
            score = capped(score * scale, cap)
        elif ALIBI:
            score *= scale
        if ALIBI:
            score -= slope * tl.abs(at[:, None] - key[None, :]).to(tl.float32)
        if EDGE:
            # one comparison without a sign: a key before `low` becomes a large number
            beyond_low = (key[None, :] - low[:, None]).to(tl.uint32, bitcast=True)
            score = tl.where(beyond_low < count[:, None], score, float("-inf"))
        if CAP or ALIBI:
            weights, factor, peak, total = stepped(score, peak, total)
        else:
            weights, factor, peak, total = scaled_step(score, scale, peak, total)
        v = load_tile(v_at + beyond * v_row, key, keys, wide, DV, DV_BLOCK, EDGE)
        if v.dtype.primitive_bitwidth == 8:
            # every code is a number of both, and fp16 keeps more bits of the weights
            v = v.to(tl.bfloat16 if BF16 else tl.float16)
        values = tl.dot(weights.to(v.dtype), v, values * factor[:, None], input_precision="ieee")
    return values, peak, total


FREE = (
    *("tokens", "sequences", "blocks", "together", "parts", "group", "left", "right"),
    *("by_blocks", "blocks_shift", "by_together", "together_shift"),
    *("by_parts", "parts_shift", "by_group", "group_shift"),
)
"""The first numbers of the kernel: what no compilation follows from."""


@triton.jit(do_not_specialize=FREE)
def varlen_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    q_ends_ptr,
    k_ends_ptr,
    alibi_ptr,
    sinks_ptr,
    q_scale_ptr,
    k_scale_ptr,
    v_scale_ptr,
    out_ptr,
    lse_ptr,
    tokens,
    sequences,
    blocks,
    together,
    parts,
    group,
    left,
    right,
    by_blocks,
    blocks_shift,
    by_together,
    together_shift,
    by_parts,
    parts_shift,
    by_group,
    group_shift,
    scale,
    cap,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    out_row,
    out_head,
    alibi_row,
    scale_row,
    scale_head,
    D: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    CODED: tl.constexpr,
    BF16: tl.constexpr,
    LSE: tl.constexpr,
    K_FIRST: tl.constexpr,
    PARTS: tl.constexpr,
):
    """ROWS queries of one head: q [tokens, heads, D], k [Tk, Hk, D], v [Tk, Hk, DV] and out [tokens, heads, DV] with
    the strides given and unit stride in a head; lse [heads, tokens], contiguous.

    blocks: of queries of the longest sequence; the last, which see most keys, are done first, and `together` heads at a
    time, in `parts` (PARTS: more than one) of a sequence's heads. group: heads to a head of k. Each of these four comes
    with its `division.inverse`. One more sequence than `sequences`, where it is started: the rows of none, set to
    zero. left, right: ends of the window, at most 2^30 away. D_MAIN + D_REST columns hold D, DV_BLOCK hold DV.
    scale, cap: with the factor log2(e). CODED: scales [sequences, Hk] of q, k and v with the strides scale_row and
    scale_head; v's codes meet weights in fp16, or bf16 where BF16. K_FIRST: see `gemm.body.summed`.
    """
    turn, head = divided_by(tl.program_id(0), together, by_together, together_shift)
    sequence, turn = divided_by(turn, blocks, by_blocks, blocks_shift)
    if PARTS:
        sequence, part = divided_by(sequence, parts, by_parts, parts_shift)
        head += part * together
    block = blocks - 1 - turn
    i = tl.arange(0, ROWS)
    wide = tl.arange(0, DV_BLOCK)
    out_at = out_ptr + head.to(tl.int64) * out_head + wide[None, :]
    lse_at = lse_ptr + head.to(tl.int64) * tokens
    begin = tl.load(q_ends_ptr + sequence)
    if sequence == sequences:
        for row in range(begin + block * ROWS, tokens, blocks * ROWS):
            there = tile_mask(row + i, tokens, wide, DV, DV_BLOCK, True)
            nothing = tl.zeros([ROWS, DV_BLOCK], out_ptr.dtype.element_ty)
            tl.store(out_at + (row + i).to(tl.int64)[:, None] * out_row, nothing, mask=there)
            if LSE:
                tl.store(lse_at + row + i, tl.full([ROWS], float("-inf"), tl.float32), mask=row + i < tokens)
        return
    queries = tl.load(q_ends_ptr + sequence + 1) - begin
    row = block * ROWS
    if row >= queries:
        return
    k_begin = tl.load(k_ends_ptr + sequence)
    keys = tl.load(k_ends_ptr + sequence + 1) - k_begin
    kv_head, _ = divided_by(head, group, by_group, group_shift)
    k_head_at = kv_head.to(tl.int64)

    # where the queries stand, which keys each sees, and which some of them see, and all of them
    shift = keys - queries
    at = row + shift + i
    low = tl.maximum(at - left, 0)
    count = tl.maximum(tl.minimum(at + right + 1, keys) - low, 0).to(tl.uint32, bitcast=True)
    lowest, highest = row + shift, tl.minimum(row + ROWS, queries) - 1 + shift
    first = tl.maximum(lowest - left, 0) // KEYS * KEYS
    last = tl.maximum(tl.minimum(highest + right + 1, keys), 0)
    whole_from = tl.maximum((tl.maximum(highest - left, 0) + KEYS - 1) & -KEYS, first)
    whole = tl.maximum(tl.maximum(tl.minimum(lowest + right + 1, keys), 0) // KEYS * KEYS, whole_from)

    main, rest = tl.arange(0, D_MAIN), D_MAIN + tl.arange(0, max(D_REST, 1))
    q_at = q_ptr + (begin + row).to(tl.int64) * q_row + head.to(tl.int64) * q_head + i[:, None] * q_row
    q = load_tile(q_at + main[None, :], row + i, queries, main, D, D_MAIN, True)
    q_rest = q
    if D_REST:
        q_rest = load_tile(q_at + rest[None, :], row + i, queries, rest, D, D_MAIN + D_REST, True)
    step = tl.arange(0, KEYS)[None, :] if K_FIRST else tl.arange(0, KEYS)[:, None]
    k_at = k_ptr + k_begin.to(tl.int64) * k_row + k_head_at * k_head + step * k_row
    step = tl.arange(0, KEYS)[:, None]
    v_at = v_ptr + k_begin.to(tl.int64) * v_row + k_head_at * v_head + step * v_row + wide[None, :]
    k_rest_at = k_at + (rest[:, None] if K_FIRST else rest[None, :])
    k_at += main[:, None] if K_FIRST else main[None, :]
    slope = 0.0
    if ALIBI:
        slope = tl.load(alibi_ptr + sequence * alibi_row + head) * LOG2_E
    out_scale = 1.0
    if CODED:
        of_scale = sequence * scale_row + kv_head * scale_head
        scale = scale * tl.load(q_scale_ptr + of_scale) * tl.load(k_scale_ptr + of_scale)
        out_scale = tl.load(v_scale_ptr + of_scale)

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if SINKS:
        peak = tl.zeros([ROWS], tl.float32) + tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E
        total += 1.0
    values = tl.zeros([ROWS, DV_BLOCK], tl.float32)
    # the window's beginning, what every row sees, and the end of the window or of the sequence
    values, peak, total = over_keys(
        *(values, peak, total, q, q_rest, at, low, count, k_at, k_rest_at, v_at, first, tl.minimum(whole_from, last)),
        *(keys, k_row, v_row, scale, cap, slope, D, D_MAIN, D_REST, DV, DV_BLOCK, KEYS),
        *(CAP, ALIBI, BF16, K_FIRST, True),
    )
    values, peak, total = over_keys(
        *(values, peak, total, q, q_rest, at, low, count, k_at, k_rest_at, v_at, whole_from, whole),
        *(keys, k_row, v_row, scale, cap, slope, D, D_MAIN, D_REST, DV, DV_BLOCK, KEYS),
        *(CAP, ALIBI, BF16, K_FIRST, False),
    )
    values, peak, total = over_keys(
        *(values, peak, total, q, q_rest, at, low, count, k_at, k_rest_at, v_at, whole, last),
        *(keys, k_row, v_row, scale, cap, slope, D, D_MAIN, D_REST, DV, DV_BLOCK, KEYS),
        *(CAP, ALIBI, BF16, K_FIRST, True),
    )
    values = values * (inverse_total(total) * out_scale)[:, None]
    there = tile_mask(row + i, queries, wide, DV, DV_BLOCK, True)
    out_at += (begin + row).to(tl.int64) * out_row + i[:, None] * out_row
    tl.store(out_at, values.to(out_ptr.dtype.element_ty), mask=there)
    if LSE:
        tl.store(lse_at + begin + row + i, lse_of(peak, total), mask=row + i < queries)
