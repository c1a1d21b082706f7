"""Slots of a routing in the order of their experts: a counting sort whose every step has one fixed order.

Up to some thousand slots one program does it; beyond, one launch counts chunks of slots and a second places them, where
each program adds up the counts of all chunks for itself. Nothing is added with atomics and nothing synchronises.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.ops.moe.align import most_blocks
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import Launcher
from aiter_ops.providers.triton.tiles.routing import align_tile


@triton.jit
def _last_slot(valid_ptr, slots, K: tl.constexpr, VALID: tl.constexpr):
    """Slots from here on are left out."""
    if VALID:
        slots = tl.minimum(tl.load(valid_ptr), slots // K) * K
    return slots


@triton.jit
def _expert_of(ids_ptr, map_ptr, slot, last, EXPERTS: tl.constexpr, MAPPED: tl.constexpr):
    """The place of each slot's expert, -1 for slots that are left out. MAPPED: entries of the map, 0 without one."""
    expert = tl.load(ids_ptr + slot, mask=slot < last, other=-1)
    if MAPPED:
        known = (expert >= 0) & (expert < MAPPED)
        expert = tl.load(map_ptr + expert, mask=known, other=-1)
    return tl.where((expert >= 0) & (expert < EXPERTS), expert, -1)


@triton.jit
def _count(expert, BINS: tl.constexpr):
    return tl.histogram(tl.maximum(expert, 0), BINS, mask=expert >= 0)


@triton.jit
def _count_chunk(
    ids_ptr,
    map_ptr,
    first,
    chunk,
    last,
    EXPERTS: tl.constexpr,
    MAPPED: tl.constexpr,
    BINS: tl.constexpr,
    STEP: tl.constexpr,
):
    """How many slots of a chunk each expert has: [BINS]."""
    total = tl.zeros([BINS], tl.int32)
    for at in range(first, first + chunk, STEP):
        total += _count(_expert_of(ids_ptr, map_ptr, at + tl.arange(0, STEP), last, EXPERTS, MAPPED), BINS)
    return total


@triton.jit(do_not_specialize=["slots", "chunk"])
def count_kernel(
    ids_ptr,
    map_ptr,
    valid_ptr,
    counts_ptr,
    slots,
    chunk,
    K: tl.constexpr,
    EXPERTS: tl.constexpr,
    MAPPED: tl.constexpr,
    VALID: tl.constexpr,
    BINS: tl.constexpr,
    STEP: tl.constexpr,
):
    """counts [chunks, BINS]: a program counts one chunk."""
    me = tl.program_id(0)
    last = _last_slot(valid_ptr, slots, K, VALID)
    total = _count_chunk(ids_ptr, map_ptr, me * chunk, chunk, last, EXPERTS, MAPPED, BINS, STEP)
    tl.store(counts_ptr + me * BINS + tl.arange(0, BINS), total)


@triton.jit(do_not_specialize=["slots", "chunk", "chunks", "blocks"])
def place_kernel(
    ids_ptr,
    map_ptr,
    valid_ptr,
    counts_ptr,
    sorted_ptr,
    owners_ptr,
    padded_count_ptr,
    slots,
    chunk,
    chunks,
    blocks,
    K: tl.constexpr,
    EXPERTS: tl.constexpr,
    MAPPED: tl.constexpr,
    VALID: tl.constexpr,
    BINS: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    TABLE: tl.constexpr,
    ALONE: tl.constexpr,
):
    """A program places one chunk's slots in `sorted` [blocks·BLOCK], and fills its share of the padding, of the blocks'
    owners and of what is not in use. ALONE: there is one chunk, and it has not been counted.
    """
    me = tl.program_id(0)
    last = _last_slot(valid_ptr, slots, K, VALID)
    expert = tl.arange(0, BINS)
    before = tl.zeros([BINS], tl.int32)
    if ALONE:
        total = _count_chunk(ids_ptr, map_ptr, 0, chunk, last, EXPERTS, MAPPED, BINS, STEP)
    else:
        total = before
        for first in range(0, chunks, TABLE):
            line = first + tl.arange(0, TABLE)[:, None]
            part = tl.load(counts_ptr + line * BINS + expert[None, :], mask=line < chunks, other=0)
            total += tl.sum(part, axis=0)
            before += tl.sum(tl.where(line < me, part, 0), axis=0)
    padded = (total + (BLOCK - 1)) // BLOCK * BLOCK
    ends = tl.cumsum(padded, axis=0)
    starts = ends - padded
    used = tl.sum(padded, axis=0)

    free = starts + before
    side = tl.arange(0, STEP)
    for at in range(me * chunk, me * chunk + chunk, STEP):
        own = _expert_of(ids_ptr, map_ptr, at + side, last, EXPERTS, MAPPED)
        earlier = (own[:, None] == own[None, :]) & (side[:, None] > side[None, :])
        rank = tl.sum(earlier.to(tl.int32), axis=1)
        target = tl.gather(free, tl.maximum(own, 0), 0) + rank
        tl.store(sorted_ptr + target, at + side, mask=own >= 0)
        free += _count(own, BINS)

    for extra in range(me, BLOCK, chunks):
        target = starts + total + extra
        tl.store(sorted_ptr + target, tl.zeros_like(target) + slots, mask=target < ends)
    for i in range(me, tl.max(padded, axis=0) // BLOCK, chunks):
        tl.store(owners_ptr + starts // BLOCK + i, expert, mask=i * BLOCK < padded)
    wide = tl.arange(0, 1024)
    for rest in range(used + me * 1024, blocks * BLOCK, chunks * 1024):
        tl.store(sorted_ptr + rest + wide, tl.zeros_like(wide) + slots, mask=rest + wide < blocks * BLOCK)
    for rest in range(used // BLOCK + me * 1024, blocks, chunks * 1024):
        tl.store(owners_ptr + rest + wide, tl.zeros_like(wide) - 1, mask=rest + wide < blocks)
    if me == 0:
        tl.store(padded_count_ptr, used)


_counter, _placer = Launcher(count_kernel, free=2), Launcher(place_kernel, free=4)


@PROVIDER.implements("moe_align")
def moe_align(
    ids: Tensor, block: int, experts: int, expert_map: Tensor | None = None, num_valid_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    slots, k = ids.numel(), ids.shape[1]
    ids = ids.contiguous()
    blocks = most_blocks(slots, block, experts)
    tile = align_tile(slots, experts)
    sorted_ids, owners, padded_count = ids.new_empty(blocks * block), ids.new_empty(blocks), ids.new_empty(1)
    places = ids if expert_map is None else expert_map.contiguous()
    valid = ids if num_valid_tokens is None else num_valid_tokens
    mapped = 0 if expert_map is None else expert_map.shape[0]
    constants = (k, experts, mapped, num_valid_tokens is not None, tile.bins, tile.step)
    counts = ids
    if tile.chunks > 1:
        counts = ids.new_empty(tile.chunks * tile.bins)
        _counter(tile.chunks, (ids, places, valid, counts), (slots, tile.chunk), constants, tile.num_warps)
    _placer(
        tile.chunks,
        (ids, places, valid, counts, sorted_ids, owners, padded_count),
        (slots, tile.chunk, tile.chunks, blocks),
        (*constants, block, tile.table, tile.chunks == 1),
        tile.num_warps,
    )
    return sorted_ids, owners, padded_count
