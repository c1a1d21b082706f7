"""The kernel of MLA decoding, attention over part of a sequence's keys, and what it shares with the merge of such parts."""

import triton
import triton.language as tl

from aiter_ops.ops.mla.plan import BLOCK
from aiter_ops.providers.triton.attention.softmax import (
    LOG2_E,
    capped,
    inverse_total,
    lse_of,
    power_of,
    stepped,
)
from aiter_ops.providers.triton.division import divided_by

KEYS = tl.constexpr(BLOCK)
"""Keys of a plan's block."""


@triton.jit
def key_count(kv_indptr_ptr, last_ptr, b, page_size):
    """Where the page numbers of sequence b begin, and how many keys it has."""
    first = tl.load(kv_indptr_ptr + b)
    pages = tl.load(kv_indptr_ptr + b + 1) - first
    return first, tl.where(pages > 0, (pages - 1) * page_size + tl.load(last_ptr + b), 0)


@triton.jit
def share_of(keys, splits, by_splits, shift, STEP: tl.constexpr):
    """Steps of STEP keys that each of so many splits does, at least one, and how many there are; by_splits, shift:
    `division.inverse` of their number.
    """
    steps = (keys + STEP - 1).to(tl.uint32) // STEP
    each, _ = divided_by(steps.to(tl.int32) + splits - 1, splits, by_splits, shift)
    return tl.maximum(each, 1), steps.to(tl.int32)


@triton.jit
def lses_at(parts, slot_rows, VALUE: tl.constexpr, PLANNED: tl.constexpr):
    """Where the lses of the slots begin, behind their values: a part of a plan has two slots, a split one."""
    return tl.cast(parts * (2 if PLANNED else 1), tl.int64) * slot_rows * VALUE


@triton.jit
def loaded(at, columns, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, AGAIN: tl.constexpr = False):
    """A tile of rows that all are there; zeros in columns past WIDTH (none where BLOCK_WIDTH is WIDTH).

    AGAIN: it is loaded wherever this stands, and the compiler may not keep it in registers through a loop.
    """
    if WIDTH == BLOCK_WIDTH:
        return tl.load(at[:, None] + columns[None, :], volatile=AGAIN)
    else:
        return tl.load(at[:, None] + columns[None, :], mask=columns[None, :] < WIDTH, other=0.0, volatile=AGAIN)


@triton.jit
def keys_at(at, columns, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, K_FIRST: tl.constexpr):
    """`loaded`; with K_FIRST [columns, keys], as `gemm.body.summed` says."""
    if not K_FIRST:
        return loaded(at, columns, WIDTH, BLOCK_WIDTH)
    elif WIDTH == BLOCK_WIDTH:
        return tl.load(at[None, :] + columns[:, None])
    else:
        return tl.load(at[None, :] + columns[:, None], mask=columns[:, None] < WIDTH, other=0.0)


@triton.jit
def stored(at, columns, values, inside, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Writes rows that are `inside`, up to column WIDTH."""
    mask = inside[:, None]
    if WIDTH != BLOCK_WIDTH:
        mask = mask & (columns[None, :] < WIDTH)
    tl.store(at[:, None] + columns[None, :], values.to(at.dtype.element_ty), mask=mask)


@triton.jit
def attended(
    q_at,
    kv_ptr,
    pages_ptr,
    furthest,
    begin,
    end,
    page_size,
    kv_page,
    kv_row,
    factor,
    cap,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    VALUE: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    HALVES: tl.constexpr,
    RELOADED: tl.constexpr,
    PAGED: tl.constexpr,
    CAPPED: tl.constexpr,
    WEIGHT: tl.constexpr,
    K_FIRST: tl.constexpr,
):
    """The rows of q at pointers `q_at` over the keys begin to end - 1, up to `furthest`, of the pages at `pages_ptr`.

    RELOADED: q is read again in every step, for want of registers. PAGED: a page holds several keys.
    Returns the sums of values in two halves of the columns (HALVES of 1: the first are all), peak and total.
    """
    columns = tl.arange(0, BLOCK_VALUE)
    high = columns + BLOCK_VALUE
    rest = tl.arange(0, BLOCK_REST)
    if not RELOADED:
        q = loaded(q_at, columns, VALUE, BLOCK_VALUE * HALVES)
        if HALVES == 2:
            q_high = loaded(q_at, high, VALUE, BLOCK_VALUE * 2)
        if REST > 0:
            q_rest = loaded(q_at + VALUE, rest, REST, BLOCK_REST)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_VALUE], tl.float32)
    acc_high = acc
    # past the end the last key is read again and not seen: what lies behind it may be NaN, or no memory
    place = tl.minimum(begin + tl.arange(0, STEP), end - 1)
    page = tl.load(pages_ptr + (place // page_size if PAGED else place), mask=place >= begin, other=0)
    for n in range(begin, end, STEP):
        key = n + tl.arange(0, STEP)
        kv_at = kv_ptr + page.to(tl.int64) * kv_page
        if PAGED:
            kv_at += (place % page_size).to(tl.int64) * kv_row
        # the next step's page numbers, for whose way from memory its keys need not wait
        place = tl.minimum(key + STEP, end - 1)
        page = tl.load(pages_ptr + (place // page_size if PAGED else place))
        k = keys_at(kv_at, columns, VALUE, BLOCK_VALUE * HALVES, K_FIRST)
        wide = k.to(WEIGHT)
        if RELOADED:
            q = loaded(q_at, columns, VALUE, BLOCK_VALUE * HALVES, True)
        met = k if q.dtype == k.dtype else wide
        score = tl.dot(q, met if K_FIRST else met.T, input_precision="ieee")
        if HALVES == 2:
            k_high = keys_at(kv_at, high, VALUE, BLOCK_VALUE * 2, K_FIRST)
            wide_high = k_high.to(WEIGHT)
            if RELOADED:
                q_high = loaded(q_at, high, VALUE, BLOCK_VALUE * 2, True)
            met = k_high if q.dtype == k.dtype else wide_high
            score = tl.dot(q_high, met if K_FIRST else met.T, score, input_precision="ieee")
        if REST > 0:
            k_rest = keys_at(kv_at + VALUE, rest, REST, BLOCK_REST, K_FIRST).to(q.dtype)
            if RELOADED:
                q_rest = loaded(q_at + VALUE, rest, REST, BLOCK_REST, True)
            score = tl.dot(q_rest, k_rest if K_FIRST else k_rest.T, score, input_precision="ieee")
        score = score * factor
        if CAPPED:
            score = capped(score, cap * LOG2_E)
        # a part ends with a step, or with the sequence, which no row sees beyond
        score = tl.where(key[None, :] <= furthest[:, None], score, float("-inf"))
        weights, decay, peak, total = stepped(score, peak, total)
        weights = weights.to(WEIGHT)
        acc = tl.dot(weights, wide.T if K_FIRST else wide, acc * decay[:, None], input_precision="ieee")
        if HALVES == 2:
            acc_high = tl.dot(
                weights, wide_high.T if K_FIRST else wide_high, acc_high * decay[:, None], input_precision="ieee"
            )
    return acc, acc_high, peak, total


@triton.jit
def written(at, acc, acc_high, over, here, VALUE: tl.constexpr, BLOCK_VALUE: tl.constexpr, HALVES: tl.constexpr):
    """Rows of sums times `over`, at the pointers `at`."""
    columns = tl.arange(0, BLOCK_VALUE)
    high = columns + BLOCK_VALUE
    stored(at, columns, acc * over[:, None], here, VALUE, BLOCK_VALUE * HALVES)
    if HALVES == 2:
        stored(at, high, acc_high * over[:, None], here, VALUE, BLOCK_VALUE * 2)


DIVISORS = ("by_parts", "parts_shift", "by_heads", "heads_shift", "by_tiles", "tiles_shift")
MERGE_FREE = ("parts", "heads", "tokens", "slot_rows", "tiles", "page_size", *DIVISORS)
DECODE_FREE = (*MERGE_FREE, "causal", "scale", "cap")
"""The first numbers of the kernels: what no compilation follows from. by_..., ..._shift: `division.inverse` of a number."""


@triton.jit(do_not_specialize=DECODE_FREE)
def decode_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    lse_ptr,
    part_ptr,
    qo_indptr_ptr,
    kv_indptr_ptr,
    pages_ptr,
    last_ptr,
    q_scale_ptr,
    kv_scale_ptr,
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
    causal,
    scale,
    cap,
    q_token,
    q_head,
    kv_page,
    kv_row,
    out_token,
    out_head,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    VALUE: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    HALVES: tl.constexpr,
    RELOADED: tl.constexpr,
    PAGED: tl.constexpr,
    PLANNED: tl.constexpr,
    CAPPED: tl.constexpr,
    Q_SCALED: tl.constexpr,
    KV_SCALED: tl.constexpr,
    WEIGHT: tl.constexpr,
    LSE: tl.constexpr,
    K_FIRST: tl.constexpr,
):
    """ROWS rows (heads × queries) of a sequence over part of its keys, STEP at a time; a program an item.

    PLANNED: part p of a plan (see mla_decode_plan), all its sequences in turn; else part p of `parts` of one sequence,
    of which those past its last key have nothing to do. A result over all keys goes to out and, with LSE, to lse, one over
    some to a slot of part, where merge_kernel finds it: [slots, slot_rows, VALUE], and behind that [slots, slot_rows], the lse in base 2.
    q [tokens, heads, VALUE + REST], kv [pages, page_size, VALUE + REST] with the strides given. The first VALUE columns
    of a key are the value, so a tile of keys is read once for both products. WEIGHT: the dtype that weights and values
    are multiplied in; FP8 keys are widened to it for the second product, and for the first where q is not FP8.
    """
    item, tile = divided_by(tl.program_id(0), tiles, by_tiles, tiles_shift)
    if PLANNED:
        part = item
        first_b, last_b = tl.load(plan_ptr + 4 * part), tl.load(plan_ptr + 4 * part + 2)
        sequences = last_b - first_b
    else:
        first_b, part = divided_by(item, parts, by_parts, parts_shift)
        sequences = 1
    factor = scale * LOG2_E
    if Q_SCALED:
        factor = factor * tl.load(q_scale_ptr)
    if KV_SCALED:
        factor = factor * tl.load(kv_scale_ptr)
    r = tile * ROWS + tl.arange(0, ROWS)
    for turn in range(0, sequences):
        b = first_b + turn
        start = tl.load(qo_indptr_ptr + b)
        queries = tl.load(qo_indptr_ptr + b + 1) - start
        page_at, keys = key_count(kv_indptr_ptr, last_ptr, b, page_size)
        if PLANNED:
            begin = tl.where(b == first_b, tl.load(plan_ptr + 4 * part + 1), 0) * KEYS
            end = tl.where(b == last_b - 1, tl.minimum(tl.load(plan_ptr + 4 * part + 3) * KEYS, keys), keys)
            busy = begin < end
        else:
            each, steps = share_of(keys, parts, by_parts, parts_shift, STEP)
            begin = part * each * STEP
            end = tl.minimum(begin + each * STEP, keys)
            # without keys the first part writes that there are none
            busy = (part == 0) | (begin < keys)
        if busy & (tile * ROWS < queries * heads):
            # rows past the last are done as the last, and not written
            row = tl.minimum(r, queries * heads - 1)
            query, head = divided_by(row, heads, by_heads, heads_shift)
            head = head.to(tl.int64)
            here = r == row
            token = (start + query).to(tl.int64)
            furthest = keys - 1 - (queries - 1 - query) * causal
            q_at = q_ptr + token * q_token + head * q_head
            acc, acc_high, peak, total = attended(
                q_at,
                kv_ptr,
                pages_ptr + page_at,
                furthest,
                begin,
                end,
                page_size,
                kv_page,
                kv_row,
                factor,
                cap,
                ROWS,
                STEP,
                VALUE,
                REST,
                BLOCK_VALUE,
                BLOCK_REST,
                HALVES,
                RELOADED,
                PAGED,
                CAPPED,
                WEIGHT,
                K_FIRST,
            )
            over = inverse_total(total)
            if KV_SCALED:
                over = over * tl.load(kv_scale_ptr)
            slot, row = part, start * heads + r
            if PLANNED:
                # of two slots of a part the second is for a sequence that begins in it
                slot = 2 * part + tl.where(part == tl.load(plan_ptr + 4 * parts + 2 * b), 1, 0)
                row = r
                alone = tl.load(plan_ptr + 4 * parts + 2 * b + 1) == 1
            else:
                alone = steps <= each
            if alone:
                out_at = out_ptr + token * out_token + head * out_head
                written(out_at, acc, acc_high, over, here, VALUE, BLOCK_VALUE, HALVES)
                if LSE:
                    tl.store(lse_ptr + head * tokens + token, lse_of(peak, total), mask=here)
            else:
                at = slot.to(tl.int64) * slot_rows + row
                written(part_ptr + at * VALUE, acc, acc_high, over, here, VALUE, BLOCK_VALUE, HALVES)
                tl.store(part_ptr + lses_at(parts, slot_rows, VALUE, PLANNED) + at, power_of(peak, total), mask=here)
