"""The kernel of attention over paged caches: tiles of query rows over all of their keys or a part.

One kernel serves decode and prefill. A program has one tile: all rows of a sequence (longer sequences are left out), or
with `many` some rows of a sequence that has more than `few`. With PLANNED it does the pieces of work that a plan of
`aiter_ops.paged_attention_plan` gives it. Where a tile's keys are shared by programs, each stores its part, and
`paged_merge` adds them up in the order of the keys.
"""

import triton
import triton.language as tl

from aiter_ops.ops.attention.paged_plan import OVERHEAD as _OVERHEAD
from aiter_ops.ops.attention.paged_plan import WIDTH as _WIDTH
from aiter_ops.providers.triton.division import divided, divided_by

from .paged_body import descale, in_fp16, keys_of, sequence_of, shares_of, stored, summed_values
from .softmax import LOG2_E

OVERHEAD, PLAN_WIDTH = tl.constexpr(_OVERHEAD), tl.constexpr(_WIDTH)

OPEN = 2**30
"""A window without an end on a side."""

FREE = [
    *("batch", "few", "many", "splits", "by_splits", "splits_shift", "programs"),
    *("unit_keys", "tokens", "left", "right", "has_q_scale", "has_k_scale", "has_v_scale"),
    *("q_scale_b", "q_scale_h", "k_scale_b", "k_scale_h", "v_scale_b", "v_scale_h", "table_row"),
]
"""The first numbers of both kernels; Triton does not specialise on them.

splits: programs that share a tile's keys; by_splits, splits_shift: its `division.inverse`. programs, unit_keys: shares of the
plan, keys of its units. tokens: rows of q. left, right: the window, or `OPEN`; right is 0 where a query sees no later key.
has_…: whether that argument is given.
"""


@triton.jit
def attend_tile(
    pointers,
    numbers,
    strides,
    b,
    kv_head,
    part_head,
    first_row,
    q_first,
    rows,
    used,
    start,
    end,
    alone,
    slot,
    HEADS: tl.constexpr,
    FACTOR: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SHUFFLED: tl.constexpr,
    K_FIRST: tl.constexpr,
    LEFT: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    TOP: tl.constexpr,
    LSE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """A tile's rows over the keys [start, end): its results where that is all (`alone`), else its part, in `slot`.

    pointers, numbers, strides, HEADS: those of the kernel.
    """
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, parts_ptr, table_ptr, alibi_ptr = pointers[:8]
    sinks_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr, out_scale_ptr = pointers[8:]
    tokens, left, right, scale, softcap, table_row = numbers[:6]
    has_q_scale, has_k_scale, has_v_scale = numbers[6:9]
    q_scale_b, q_scale_h, k_scale_b, k_scale_h, v_scale_b, v_scale_h = numbers[9:]
    q_row, q_head, out_row, out_head, k_block, k_position, k_head, v_block, v_position, v_head = strides
    r = tl.arange(0, M)
    HEADS_TILE: tl.constexpr = min(HEADS, M)
    token_in, head_in = divided(r, HEADS_TILE)
    token = first_row + token_in
    head = kv_head * HEADS + part_head + head_in
    there = (token_in < M // HEADS_TILE) & (token < rows)
    if HEADS > HEADS_TILE:
        there &= part_head + head_in < HEADS
    d = tl.arange(0, WIDTH)
    row = (q_first + token).to(tl.int64)
    q_at = row * q_row + head * q_head
    q = tl.load(q_ptr + q_at[:, None] + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0)
    factor = scale * descale(q_scale_ptr, b, kv_head, q_scale_b, q_scale_h, has_q_scale, SCALED)
    factor *= descale(k_scale_ptr, b, kv_head, k_scale_b, k_scale_h, has_k_scale, SCALED)
    factors = tl.zeros([M], tl.float32) + factor * LOG2_E
    own: tl.constexpr = q_ptr.dtype.element_ty
    if own == tl.bfloat16 and own != FACTOR:
        q, of_row = in_fp16(q)
        factors *= of_row
    slopes = tl.zeros([M], tl.float32)
    if ALIBI:
        slopes = tl.load(alibi_ptr + head, mask=there, other=0.0).to(tl.float32) * LOG2_E
    at = used - rows + token
    high = tl.minimum(at + right + 1, end)
    acc, peak, total = summed_values(
        q.to(FACTOR),
        k_ptr + kv_head.to(tl.int64) * k_head,
        v_ptr + kv_head.to(tl.int64) * v_head,
        table_ptr + b.to(tl.int64) * table_row,
        slopes,
        at,
        tl.minimum(at - left, high) if LEFT else high,
        high,
        start,
        end,
        factors,
        softcap * LOG2_E,
        k_block,
        k_position,
        v_block,
        v_position,
        LEFT,
        CAPPED,
        ALIBI,
        SHUFFLED,
        K_FIRST,
        D,
        BLOCK,
        N,
    )
    if alone:
        stored(
            acc,
            peak,
            total,
            descale(v_scale_ptr, b, kv_head, v_scale_b, v_scale_h, has_v_scale, SCALED),
            sinks_ptr,
            out_scale_ptr,
            out_ptr,
            lse_ptr,
            head,
            row * out_row + head * out_head,
            head.to(tl.int64) * tokens + row,
            there,
            D,
            SINKS,
            TOP,
            LSE,
        )
    else:
        part = parts_ptr + slot.to(tl.int64) * (M * (WIDTH + 2))
        tl.store(part + r[:, None] * WIDTH + d[None, :], acc)
        tl.store(part + M * WIDTH + r, peak)
        tl.store(part + M * (WIDTH + 1) + r, total)


@triton.jit(do_not_specialize=FREE)
def paged_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    parts_ptr,
    cu_ptr,
    used_ptr,
    table_ptr,
    alibi_ptr,
    sinks_ptr,
    q_scale_ptr,
    k_scale_ptr,
    v_scale_ptr,
    out_scale_ptr,
    plan_ptr,
    batch,
    few,
    many,
    splits,
    by_splits,
    splits_shift,
    programs,
    unit_keys,
    tokens,
    left,
    right,
    has_q_scale,
    has_k_scale,
    has_v_scale,
    q_scale_b,
    q_scale_h,
    k_scale_b,
    k_scale_h,
    v_scale_b,
    v_scale_h,
    table_row,
    scale,
    softcap,
    q_row,
    q_head,
    out_row,
    out_head,
    k_block,
    k_position,
    k_head,
    v_block,
    v_position,
    v_head,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    FACTOR: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SHUFFLED: tl.constexpr,
    K_FIRST: tl.constexpr,
    LEFT: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    TOP: tl.constexpr,
    LSE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PLANNED: tl.constexpr,
):
    """Numbers: see `FREE`. q_row, k_block and so on: strides. HEADS: query heads of a kv head; a tile has no more than it
    has rows. FACTOR: the type of the products' factors. TOP: see `stored`. M, N: rows and keys of a step.
    """
    pid = tl.program_id(0)
    pointers = (q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, parts_ptr, table_ptr, alibi_ptr)
    pointers += (sinks_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr, out_scale_ptr)
    numbers = (tokens, left, right, scale, softcap, table_row)
    numbers += (has_q_scale, has_k_scale, has_v_scale)
    numbers += (q_scale_b, q_scale_h, k_scale_b, k_scale_h, v_scale_b, v_scale_h)
    strides = (q_row, q_head, out_row, out_head, k_block, k_position, k_head, v_block, v_position, v_head)
    if PLANNED:
        mine = plan_ptr + pid * PLAN_WIDTH
        b, kv_head, unit, units = tl.load(mine), tl.load(mine + 1), tl.load(mine + 2), tl.load(mine + 3)
        while units > 0:
            sequence = plan_ptr + (programs + b) * PLAN_WIDTH
            all_units = tl.load(sequence + 1)
            taken = tl.minimum(all_units - unit, units)
            if taken > 0:
                q_first = tl.load(cu_ptr + b)
                used = tl.load(used_ptr + b)
                start = (tl.load(sequence + 2) + unit) * unit_keys
                attend_tile(
                    pointers,
                    numbers,
                    strides,
                    b,
                    kv_head,
                    0,
                    0,
                    q_first,
                    tl.load(cu_ptr + b + 1) - q_first,
                    used,
                    start,
                    tl.minimum(start + taken * unit_keys, used),
                    taken == all_units,
                    2 * pid + (unit == 0).to(tl.int32),
                    HEADS,
                    FACTOR,
                    D,
                    WIDTH,
                    BLOCK,
                    SHUFFLED,
                    K_FIRST,
                    LEFT,
                    CAPPED,
                    ALIBI,
                    SINKS,
                    SCALED,
                    TOP,
                    LSE,
                    M,
                    N,
                )
            # on to the next head, over what is left of this one and its overhead; or to the next sequence
            scheduled = all_units > 0
            units -= tl.where(scheduled, all_units + OVERHEAD - unit, 0)
            unit = unit * 0
            next_head = tl.where(scheduled, kv_head + 1, KV_HEADS)
            b += (next_head == KV_HEADS).to(tl.int32)
            kv_head = tl.where(next_head == KV_HEADS, 0, next_head)
    else:
        HEADS_TILE: tl.constexpr = min(HEADS, M)
        TILES_HEAD: tl.constexpr = (HEADS + HEADS_TILE - 1) // HEADS_TILE
        rest, of_head = divided(pid, KV_HEADS * TILES_HEAD)
        kv_head, tile_head = divided(of_head, TILES_HEAD)
        tile, split = divided_by(rest, splits, by_splits, splits_shift)
        b, within = tile, 0
        if many != 0:
            b, within = sequence_of(cu_ptr, tile, batch, M // HEADS_TILE)
        first_row = within * (M // HEADS_TILE)
        q_first = tl.load(cu_ptr + b)
        rows = tl.load(cu_ptr + b + 1) - q_first
        used = tl.load(used_ptr + b)
        last_row = tl.minimum(first_row + M // HEADS_TILE, rows)
        begin, end = keys_of(used, rows, first_row, last_row, left, right, N, LEFT)
        steps, each = shares_of(begin, end, splits, by_splits, splits_shift, N)
        first_step = split * each
        start = begin + first_step * N
        if (first_row < rows) & (first_step < steps) & ((rows > few) == (many != 0)):
            attend_tile(
                pointers,
                numbers,
                strides,
                b,
                kv_head,
                tile_head * HEADS_TILE,
                first_row,
                q_first,
                rows,
                used,
                start,
                tl.minimum(end, start + each * N),
                steps <= each,
                pid,
                HEADS,
                FACTOR,
                D,
                WIDTH,
                BLOCK,
                SHUFFLED,
                K_FIRST,
                LEFT,
                CAPPED,
                ALIBI,
                SINKS,
                SCALED,
                TOP,
                LSE,
                M,
                N,
            )
