"""The schedule of attention over paged sequences, made on the device in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.ops.attention.paged_plan import LEAST_SHARE as _LEAST_SHARE
from aiter_ops.ops.attention.paged_plan import MOST_ROWS as _MOST_ROWS
from aiter_ops.ops.attention.paged_plan import OVERHEAD as _OVERHEAD
from aiter_ops.ops.attention.paged_plan import WIDTH, programs_of, unit_keys
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import Launcher

LEAST_SHARE, OVERHEAD = tl.constexpr(_LEAST_SHARE), tl.constexpr(_OVERHEAD)
MOST_ROWS, PLAN_WIDTH = tl.constexpr(_MOST_ROWS), tl.constexpr(WIDTH)
STEP, SHARES = 256, 4
"""Sequences a program looks at together, and shares it writes."""


@triton.jit
def _work(cu_ptr, used_ptr, b, batch, group, unit, left, LEFT: tl.constexpr):
    """first unit, units and cost of the kv heads of each sequence b; all zero where it is not scheduled."""
    there = b < batch
    rows = tl.load(cu_ptr + b + 1, mask=there, other=0) - tl.load(cu_ptr + b, mask=there, other=0)
    keys = tl.load(used_ptr + b, mask=there, other=0)
    scheduled = there & (rows > 0) & (rows * group <= MOST_ROWS)
    first = tl.zeros_like(keys)
    if LEFT:
        first = tl.maximum(keys - rows - left, 0) // unit
    units = tl.maximum((keys + unit - 1) // unit - first, 1)
    return (
        tl.where(scheduled, first, 0),
        tl.where(scheduled, units, 0),
        tl.where(scheduled, units + OVERHEAD, 0),
    )


@triton.jit(do_not_specialize=["batch", "group", "kv_heads", "unit", "left", "programs"])
def plan_kernel(
    cu_ptr,
    used_ptr,
    plan_ptr,
    batch,
    group,
    kv_heads,
    unit,
    left,
    programs,
    LEFT: tl.constexpr,
    STEP: tl.constexpr,
    SHARES: tl.constexpr,
):
    """Every program adds up the line of work for itself, writes SHARES rows of programs, and a part of the sequences'."""
    pid, count = tl.program_id(0), tl.num_programs(0)
    side = tl.arange(0, STEP)
    total = tl.zeros([STEP], tl.int32)
    for first in range(0, batch, STEP):
        _, _, cost = _work(cu_ptr, used_ptr, first + side, batch, group, unit, left, LEFT)
        total += cost
    line = tl.sum(total, axis=0) * kv_heads
    share = tl.maximum((line + programs - 1) // programs, LEAST_SHARE)

    p = pid * SHARES + tl.arange(0, SHARES)
    at = p * share
    sequence, begin, each = tl.zeros_like(p), tl.zeros_like(p), tl.zeros_like(p)
    before = 0
    for first in range(0, batch, STEP):
        b = first + side
        first_unit, units, cost = _work(cu_ptr, used_ptr, b, batch, group, unit, left, LEFT)
        cost_line = cost * kv_heads
        ends = before + tl.cumsum(cost_line, axis=0)
        starts = ends - cost_line
        past = (ends[None, :] <= at[:, None]) & (b < batch)[None, :]
        sequence += tl.sum(past.to(tl.int32), axis=1)
        begin = tl.maximum(begin, tl.max(tl.where(past, ends[None, :], 0), axis=1))
        holds = (starts[None, :] <= at[:, None]) & (ends[None, :] > at[:, None])
        each += tl.sum(tl.where(holds, cost[None, :], 0), axis=1)
        before += tl.sum(cost_line, axis=0)
        if first // STEP % count == pid:
            row = plan_ptr + (programs + b) * PLAN_WIDTH
            there = b < batch
            tl.store(row, starts, mask=there)
            tl.store(row + 1, units, mask=there)
            tl.store(row + 2, first_unit, mask=there)
            tl.store(row + 3, tl.zeros_like(b) + share, mask=there)

    length = tl.minimum(tl.maximum(line - at, 0), share)
    busy = length > 0
    each = tl.maximum(each, 1)
    inside = at - begin
    row = plan_ptr + p * PLAN_WIDTH
    there = p < programs
    tl.store(row, tl.where(busy, sequence, 0), mask=there)
    tl.store(row + 1, tl.where(busy, inside // each, 0), mask=there)
    tl.store(row + 2, tl.where(busy, inside % each, 0), mask=there)
    tl.store(row + 3, length, mask=there)


_planner = Launcher(plan_kernel, free=6)


@PROVIDER.implements("paged_attention_plan", batch_invariant=True)
def paged_attention_plan(
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    heads: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    max_q: int,
    max_k: int,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    programs: int = 256,
) -> Tensor:
    batch = seqused_k.shape[0]
    count = programs_of(batch, kv_heads, head_size, block_size, max_k, programs)
    plan = seqused_k.new_empty((count + batch, WIDTH))
    _planner(
        -(-count // SHARES),
        (cu_seqlens_q.contiguous(), seqused_k.contiguous(), plan),
        (batch, heads // kv_heads, kv_heads, unit_keys(head_size, block_size), max(window[0], 0), count),
        (window[0] >= 0, STEP, SHARES),
    )
    return plan
