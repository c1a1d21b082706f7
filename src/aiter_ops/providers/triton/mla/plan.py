"""A schedule for MLA decoding, made on the device in one launch: a program a part, each sums the costs for itself."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.ops.mla.plan import OVERHEAD, part_count, plan_size
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.division import divided, divided_by, inverse
from aiter_ops.providers.triton.launch import Launcher

from .kernels import KEYS, key_count

COST = tl.constexpr(OVERHEAD)
SEQUENCES = 256
"""Sequences that are read at once."""


@triton.jit
def blocks_of(qo_indptr_ptr, kv_indptr_ptr, last_ptr, b, batch, page_size):
    """Key blocks of the sequences b, and what they cost; zeros for those without rows, and past the last."""
    at = tl.minimum(b, batch - 1)
    _, keys = key_count(kv_indptr_ptr, last_ptr, at, page_size)
    rows = tl.load(qo_indptr_ptr + at + 1) - tl.load(qo_indptr_ptr + at)
    blocks = ((keys + KEYS - 1).to(tl.uint32) // KEYS).to(tl.int32)
    blocks = tl.where((rows > 0) & (b < batch), blocks, 0)
    return blocks, tl.where(blocks > 0, blocks + COST, 0)


@triton.jit(do_not_specialize=["batch", "parts", "page_size", "by_parts", "parts_shift"])
def plan_kernel(
    qo_indptr_ptr,
    kv_indptr_ptr,
    last_ptr,
    plan_ptr,
    batch,
    parts,
    page_size,
    by_parts,
    parts_shift,
    SEQUENCES: tl.constexpr,
):
    """One part of the plan; the first program also writes what it says of sequences. See mla_decode_plan. by_parts,
    parts_shift: `division.inverse` of parts.
    """
    lane = tl.arange(0, SEQUENCES)
    sums = tl.zeros([SEQUENCES], tl.int32)
    for begin in range(0, batch, SEQUENCES):
        _, cost = blocks_of(qo_indptr_ptr, kv_indptr_ptr, last_ptr, begin + lane, batch, page_size)
        sums += cost
    share = tl.maximum(divided_by(tl.sum(sums, axis=0) + parts - 1, parts, by_parts, parts_shift)[0], 1)

    part = tl.program_id(0)
    low = part * share
    high = low + share
    before = part * 0
    first, first_lies, first_blocks = before, before, before
    last, last_lies, last_blocks = before, before, before
    for begin in range(0, batch, SEQUENCES):
        b = begin + lane
        blocks, cost = blocks_of(qo_indptr_ptr, kv_indptr_ptr, last_ptr, b, batch, page_size)
        ends = before + tl.cumsum(cost, axis=0)
        starts = ends - cost
        before += tl.sum(cost, axis=0)
        lies = starts + COST
        first += tl.sum(((b < batch) & (ends <= low)).to(tl.int32), axis=0)
        holds = (starts <= low) & (low < ends)
        first_lies += tl.sum(tl.where(holds, lies, 0), axis=0)
        first_blocks += tl.sum(tl.where(holds, blocks, 0), axis=0)
        # costs are summed in order, so those counted here are the chunk's first, and the last of them the last so far
        count = tl.sum(((b < batch) & (lies < high)).to(tl.int32), axis=0)
        last += count
        ending = lane == count - 1
        last_lies = tl.where(count > 0, tl.sum(tl.where(ending, lies, 0), axis=0), last_lies)
        last_blocks = tl.where(count > 0, tl.sum(tl.where(ending, blocks, 0), axis=0), last_blocks)
        if part == 0:
            here = divided(lies, share)[0]
            pieces = divided(lies + blocks - 1, share)[0] - here + 1
            row = plan_ptr + 4 * parts + 2 * b
            tl.store(row, tl.where(blocks > 0, here, 0), mask=b < batch)
            tl.store(row + 1, tl.where(blocks > 0, pieces, 0), mask=b < batch)
    last = tl.maximum(last, first)
    begins = tl.minimum(tl.maximum(low - first_lies, 0), first_blocks)
    stops = tl.minimum(tl.maximum(high - last_lies, 0), last_blocks)
    row = plan_ptr + 4 * part
    tl.store(row, first)
    tl.store(row + 1, tl.where(last > first, begins, 0))
    tl.store(row + 2, last)
    tl.store(row + 3, tl.where(last > first, stops, 0))


_plan = Launcher(plan_kernel, free=5)


@PROVIDER.implements("mla_decode_plan", batch_invariant=True)
def mla_decode_plan(
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_last_page_lens: Tensor,
    heads: int,
    page_size: int,
    max_q: int,
    programs: int,
) -> Tensor:
    parts, batch = part_count(programs, heads, max_q), qo_indptr.shape[0] - 1
    if batch == 0:
        return qo_indptr.new_zeros((plan_size(parts, batch),))
    plan = torch.empty((plan_size(parts, batch),), dtype=torch.int32, device=qo_indptr.device)
    tensors = (qo_indptr.contiguous(), kv_indptr.contiguous(), kv_last_page_lens.contiguous(), plan)
    _plan(parts, tensors, (batch, parts, page_size, *inverse(parts)), (SEQUENCES,), 4)
    return plan
