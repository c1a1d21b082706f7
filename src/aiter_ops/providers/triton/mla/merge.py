"""The merge of parts of a sequence's keys, as MLA decoding leaves them."""

import triton
import triton.language as tl

from aiter_ops.providers.triton.attention.softmax import inverse_total, lse_of
from aiter_ops.providers.triton.division import divided_by

from .kernels import MERGE_FREE, key_count, lses_at, share_of


@triton.jit(do_not_specialize=MERGE_FREE)
def merge_kernel(
    out_ptr,
    lse_ptr,
    part_ptr,
    qo_indptr_ptr,
    kv_indptr_ptr,
    last_ptr,
    plan_ptr,
    parts,
    heads,
    tokens,
    slot_rows,
    tiles,
    page_size,
    by_parts,
    parts_shift,
    by_heads,
    heads_shift,
    by_tiles,
    tiles_shift,
    out_token,
    out_head,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    VALUE: tl.constexpr,
    PLANNED: tl.constexpr,
    LSE: tl.constexpr,
    ONCE: tl.constexpr,
):
    """COLUMNS columns of ROWS rows of a sequence from the slots of its parts, PIECES of them at a time (ONCE: there are no
    more).

    A sequence done in one piece is there already; one without keys that a plan left out gets zeros and -inf.
    """
    CHUNKS: tl.constexpr = (VALUE + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0).to(tl.uint32)
    chunk = (program % CHUNKS).to(tl.int32)
    b, tile = divided_by((program // CHUNKS).to(tl.int32), tiles, by_tiles, tiles_shift)
    r = tile * ROWS + tl.arange(0, ROWS)
    start = tl.load(qo_indptr_ptr + b)
    here = r < (tl.load(qo_indptr_ptr + b + 1) - start) * heads
    if PLANNED:
        first = tl.load(plan_ptr + 4 * parts + 2 * b)
        steps, each = tl.load(plan_ptr + 4 * parts + 2 * b + 1), 1
        alone = steps == 1
    else:
        _, keys = key_count(kv_indptr_ptr, last_ptr, b, page_size)
        each, steps = share_of(keys, parts, by_parts, parts_shift, STEP)
        alone = steps <= each
        first = 0
    if alone:
        return
    part_lse_ptr = part_ptr + lses_at(parts, slot_rows, VALUE, PLANNED)
    columns = chunk * COLUMNS + tl.arange(0, COLUMNS)
    within = columns < VALUE
    j = tl.arange(0, PIECES)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    # a piece has `each` steps; of a plan pieces are what is counted
    for _ in range(0, 1 if ONCE else steps, 1 if ONCE else PIECES * each):
        if PLANNED:
            at = (2 * (first + j) + tl.where(j == 0, 1, 0)).to(tl.int64)[:, None] * slot_rows + r[None, :]
        else:
            at = j.to(tl.int64)[:, None] * slot_rows + (start * heads + r)[None, :]
        there = (j * each < steps)[:, None] & here[None, :]
        power = tl.load(part_lse_ptr + at, mask=there, other=float("-inf"))
        values = tl.load(
            part_ptr + at[:, :, None] * VALUE + columns[None, None, :],
            mask=there[:, :, None] & within[None, None, :],
            other=0.0,
        )
        best = tl.max(power, axis=0)
        if not ONCE:
            best = tl.maximum(peak, best)
        base = tl.where(best == float("-inf"), 0.0, best)
        weights = tl.exp2(power - base[None, :])
        if not ONCE:
            before = tl.exp2(peak - base)
            total, acc = total * before, acc * before[:, None]
            j += PIECES
        peak = best
        total += tl.sum(weights, axis=0)
        acc += tl.sum(values * weights[:, :, None], axis=0)
    values = acc * inverse_total(total)[:, None]
    query, head = divided_by(r, heads, by_heads, heads_shift)
    token, head = (start + query).to(tl.int64), head.to(tl.int64)
    out_at = out_ptr + (token * out_token + head * out_head)[:, None] + columns[None, :]
    tl.store(out_at, values.to(out_ptr.dtype.element_ty), mask=here[:, None] & within[None, :])
    if LSE and chunk == 0:
        tl.store(lse_ptr + head * tokens + token, lse_of(peak, total), mask=here)
