"""The sum of the parts that programs made of a tile of attention over paged caches, in the order of the keys."""

import triton
import triton.language as tl

from aiter_ops.providers.triton.division import divided, divided_by

from .paged_body import descale, keys_of, sequence_of, shares_of, stored
from .paged_kernels import FREE, OVERHEAD, PLAN_WIDTH
from .softmax import joined


@triton.jit(do_not_specialize=[*FREE, "rows_done", "by_rows", "rows_shift"])
def merge_kernel(
    parts_ptr,
    out_ptr,
    lse_ptr,
    cu_ptr,
    used_ptr,
    sinks_ptr,
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
    rows_done,
    by_rows,
    rows_shift,
    out_row,
    out_head,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    TOP: tl.constexpr,
    LSE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A program adds up the parts of one row of a tile, where it has more than one, PARTS at a time, in their order.

    rows_done: rows of a tile that have a program; by_rows, rows_shift: its `division.inverse`. M, N: of the kernel that
    made the parts. programs: 0 without a plan.
    """
    HEADS_TILE: tl.constexpr = min(HEADS, M)
    TILES_HEAD: tl.constexpr = (HEADS + HEADS_TILE - 1) // HEADS_TILE
    rest, r = divided_by(tl.program_id(0), rows_done, by_rows, rows_shift)
    tile, of_head = divided(rest, KV_HEADS * TILES_HEAD)
    kv_head, tile_head = divided(of_head, TILES_HEAD)
    b, within = tile, 0
    if many != 0:
        b, within = sequence_of(cu_ptr, tile, batch, M // HEADS_TILE)
    first_row = within * (M // HEADS_TILE)
    q_first = tl.load(cu_ptr + b)
    rows = tl.load(cu_ptr + b + 1) - q_first
    token_in, head_in = divided(r, HEADS_TILE)
    token, head_in = first_row + token_in, tile_head * HEADS_TILE + head_in
    # part i is there where i times `each` is below `steps`; of a plan, units from the first part's program on
    if programs > 0:
        sequence = plan_ptr + (programs + b) * PLAN_WIDTH
        units = tl.load(sequence + 1)
        each = tl.load(sequence + 3)
        first, before = divided(tl.load(sequence) + kv_head * (units + OVERHEAD), each)
        steps = before + units
    else:
        used = tl.load(used_ptr + b)
        last_row = tl.minimum(first_row + M // HEADS_TILE, rows)
        begin, end = keys_of(used, rows, first_row, last_row, left, right, N, True)
        steps, each = shares_of(begin, end, splits, by_splits, splits_shift, N)
        steps = tl.where((rows > few) == (many != 0), steps, 0)
        first = tile * splits
    there = token < rows
    if HEADS > HEADS_TILE:
        there &= head_in < HEADS
    if there & (steps > each):
        # which the compiler does not see of steps that were loaded
        tl.assume(steps > 0)
        d = tl.arange(0, WIDTH)
        acc = tl.zeros([WIDTH], tl.float32)
        peak = tl.full([1], float("-inf"), tl.float32)
        total = tl.zeros([1], tl.float32)
        part = tl.arange(0, PARTS)
        # of a plan the part that begins a head is in the second slot of its program, the others in the first
        apart = tl.where(programs > 0, 2, KV_HEADS * TILES_HEAD)
        least = tl.where(programs > 0, 1, 0)
        first_slot = first * apart + tl.where(programs > 0, 0, of_head)
        for _ in range(0, steps, PARTS * each):
            inside = part * each < steps
            slot = first_slot + tl.maximum(part * apart, least)
            at_part = parts_ptr + slot.to(tl.int64) * (M * (WIDTH + 2))
            peaks = tl.load(at_part + M * WIDTH + r, mask=inside, other=float("-inf"))
            totals = tl.load(at_part + M * (WIDTH + 1) + r, mask=inside, other=0.0)
            values = tl.load(at_part[:, None] + r * WIDTH + d[None, :], mask=inside[:, None], other=0.0)
            best = tl.max(peaks, axis=0, keep_dims=True)
            weights = tl.exp2(peaks - tl.where(best == float("-inf"), 0.0, best))
            more = tl.sum(totals * weights, axis=0, keep_dims=True)
            mine, other, peak, total = joined(peak, total, best, more)
            acc = acc * mine + tl.sum(values * weights[:, None], axis=0) * other
            part += PARTS
        row = (q_first + token).to(tl.int64)
        head = tl.zeros([1], tl.int32) + kv_head * HEADS + head_in
        stored(
            acc[None, :],
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
            tl.full([1], True, tl.int1),
            D,
            SINKS,
            TOP,
            LSE,
        )
