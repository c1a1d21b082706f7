"""The sum of the parts that programs made of a tile of attention over paged caches, in the order of the keys."""

import triton
import triton.language as tl

from aiter_ops.providers.triton.common import divided

from .paged_body import descale, keys_of, sequence_of, share_of, stored
from .paged_kernels import FREE, OVERHEAD, PLAN_WIDTH
from .softmax import joined


@triton.jit(do_not_specialize=[*FREE, "tile_rows", "step"])
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
    kv_heads,
    heads,
    heads_tile,
    tiles_head,
    few,
    many,
    splits,
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
    tile_rows,
    step,
    out_row,
    out_head,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    TOP: tl.constexpr,
    LSE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A program adds up the parts of one row of a tile, where it has more than one, PARTS at a time, in their order.

    tile_rows, step: M and N of the kernel that made the parts. programs: 0 without a plan.
    """
    tokens_tile, _ = divided(tile_rows, heads_tile)
    rows_done = heads_tile * (tokens_tile if many != 0 else few)
    head_tiles = kv_heads * tiles_head
    rest, r = divided(tl.program_id(0), rows_done)
    tile, of_head = divided(rest, head_tiles)
    kv_head, tile_head = divided(of_head, tiles_head)
    b, within = tile, 0
    if many != 0:
        b, within = sequence_of(cu_ptr, tile, batch, tokens_tile)
    first_row = within * tokens_tile
    q_first = tl.load(cu_ptr + b)
    rows = tl.load(cu_ptr + b + 1) - q_first
    token_in, head_in = divided(r, heads_tile)
    token, head_in = first_row + token_in, tile_head * heads_tile + head_in
    if programs > 0:
        sequence = plan_ptr + (programs + b) * PLAN_WIDTH
        units = tl.load(sequence + 1)
        share = tl.load(sequence + 3)
        start = tl.load(sequence) + kv_head * (units + OVERHEAD)
        first, _ = divided(start, share)
        last, _ = divided(start + units - 1, share)
        parts = tl.where(units > 0, last - first + 1, 0)
    else:
        used = tl.load(used_ptr + b)
        last_row = tl.minimum(first_row + tokens_tile, rows)
        begin, end = keys_of(used, rows, first_row, last_row, left, right, step, True)
        _, _, parts = share_of(begin, end, splits, 0, step)
        parts = tl.where((rows > few) == (many != 0), parts, 0)
        first = tile * splits
    if (token < rows) & (head_in < heads) & (parts > 1):
        d = tl.arange(0, WIDTH)
        acc = tl.zeros([WIDTH], tl.float32)
        peak = tl.full([1], float("-inf"), tl.float32)
        total = tl.zeros([1], tl.float32)
        for at in range(0, parts, PARTS):
            part = at + tl.arange(0, PARTS)
            inside = part < parts
            # of a plan the part that begins a head is in the second slot of its program, the others in the first
            of_plan = 2 * (first + part) + (part == 0).to(tl.int32)
            slot = tl.where(programs > 0, of_plan, (first + part) * head_tiles + of_head)
            at_part = parts_ptr + slot.to(tl.int64) * (tile_rows * (WIDTH + 2))
            peaks = tl.load(at_part + tile_rows * WIDTH + r, mask=inside, other=float("-inf"))
            totals = tl.load(at_part + tile_rows * (WIDTH + 1) + r, mask=inside, other=0.0)
            values = tl.load(at_part[:, None] + r * WIDTH + d[None, :], mask=inside[:, None], other=0.0)
            best = tl.max(peaks, axis=0, keep_dims=True)
            weights = tl.exp2(peaks - tl.where(best == float("-inf"), 0.0, best))
            more = tl.sum(totals * weights, axis=0, keep_dims=True)
            mine, other, peak, total = joined(peak, total, best, more)
            acc = acc * mine + tl.sum(values * weights[:, None], axis=0) * other
        row = (q_first + token).to(tl.int64)
        head = tl.zeros([1], tl.int32) + kv_head * heads + head_in
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
            head >= 0,
            D,
            SINKS,
            TOP,
            LSE,
        )
