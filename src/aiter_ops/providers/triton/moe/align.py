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
from aiter_ops.providers.triton.division import divided
from aiter_ops.providers.triton.launch import Launcher, machine
from aiter_ops.providers.triton.tiles.routing import align_tile


@triton.jit
def _last_slot(valid_ptr, slots, k, VALID: tl.constexpr):
    """Slots from here on are left out."""
    if VALID:
        slots = tl.minimum(tl.load(valid_ptr), divided(slots, k)[0]) * k
    return slots


@triton.jit
def _expert_of(ids_ptr, map_ptr, slot, last, experts, known, MAPPED: tl.constexpr):
    """The place of each slot's expert, -1 for slots that are left out. known: entries of the map, where there is one."""
    expert = tl.load(ids_ptr + slot, mask=slot < last, other=-1)
    if MAPPED:
        expert = tl.load(map_ptr + expert, mask=(expert >= 0) & (expert < known), other=-1)
    return tl.where((expert >= 0) & (expert < experts), expert, -1)


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
    experts,
    known,
    MAPPED: tl.constexpr,
    BINS: tl.constexpr,
    STEP: tl.constexpr,
):
    """How many slots of a chunk each expert has: [BINS]."""
    total = tl.zeros([BINS], tl.int32)
    slot = first + tl.arange(0, STEP)
    tl.assume(chunk > 0)
    for at in range(0, chunk, STEP):
        total += _count(_expert_of(ids_ptr, map_ptr, slot + at, last, experts, known, MAPPED), BINS)
    return total


@triton.jit
def _rank(
    ids_ptr,
    map_ptr,
    at,
    own,
    last,
    experts,
    known,
    MAPPED: tl.constexpr,
    STEP: tl.constexpr,
    LINES: tl.constexpr,
):
    """For each of STEP slots from `at` on, with experts `own`, how many of them come before it and have its expert.

    LINES slots at a time are held against all: the whole square of comparisons does not fit the registers.
    """
    side = tl.arange(0, STEP)
    same = tl.zeros([LINES, STEP], tl.int32)
    for line in range(0, STEP, LINES):
        before = line + tl.arange(0, LINES)
        other = _expert_of(ids_ptr, map_ptr, at + before, last, experts, known, MAPPED)
        same += ((other[:, None] == own[None, :]) & (before[:, None] < side[None, :])).to(tl.int32)
    return tl.sum(same, axis=0)


@triton.jit
def _place(sorted_ptr, slot, own, free, rank):
    """Store slots with experts `own` where their expert's next ones go, `free` [BINS]."""
    tl.store(sorted_ptr + tl.gather(free, tl.maximum(own, 0), 0) + rank, slot, mask=own >= 0)


@triton.jit(do_not_specialize=["slots", "k", "experts", "known", "chunk"])
def count_kernel(
    ids_ptr,
    map_ptr,
    valid_ptr,
    counts_ptr,
    slots,
    k,
    experts,
    known,
    chunk,
    MAPPED: tl.constexpr,
    VALID: tl.constexpr,
    BINS: tl.constexpr,
    STEP: tl.constexpr,
):
    """counts [chunks, BINS]: a program counts one chunk."""
    me = tl.program_id(0)
    last = _last_slot(valid_ptr, slots, k, VALID)
    total = _count_chunk(ids_ptr, map_ptr, me * chunk, chunk, last, experts, known, MAPPED, BINS, STEP)
    tl.store(counts_ptr + me * BINS + tl.arange(0, BINS), total)


@triton.jit(do_not_specialize=["slots", "k", "experts", "known", "chunk", "chunks", "blocks", "block"])
def place_kernel(
    ids_ptr,
    map_ptr,
    valid_ptr,
    counts_ptr,
    sorted_ptr,
    owners_ptr,
    padded_count_ptr,
    slots,
    k,
    experts,
    known,
    chunk,
    chunks,
    blocks,
    block,
    MAPPED: tl.constexpr,
    VALID: tl.constexpr,
    BINS: tl.constexpr,
    STEP: tl.constexpr,
    LINES: tl.constexpr,
    TABLE: tl.constexpr,
    ALONE: tl.constexpr,
):
    """A program places one chunk's slots in `sorted` [blocks·block], and fills its share of the padding, of the blocks'
    owners and of what is not in use. ALONE: slots of the one chunk there is, which has not been counted; 0: there are several.
    """
    me = tl.program_id(0)
    if ALONE > 0:
        me, chunks, chunk = 0, 1, ALONE
    last = _last_slot(valid_ptr, slots, k, VALID)
    expert = tl.arange(0, BINS)
    side = tl.arange(0, STEP)
    before = tl.zeros([BINS], tl.int32)
    own = _expert_of(ids_ptr, map_ptr, me * chunk + side, last, experts, known, MAPPED)
    if ALONE == STEP:
        total = _count(own, BINS)
    elif ALONE > 0:
        total = _count_chunk(ids_ptr, map_ptr, 0, chunk, last, experts, known, MAPPED, BINS, STEP)
    else:
        total = before
        tl.assume(chunks > 0)
        for first in range(0, chunks, TABLE):
            line = first + tl.arange(0, TABLE)[:, None]
            part = tl.load(counts_ptr + line * BINS + expert[None, :], mask=line < chunks, other=0)
            total += tl.sum(part, axis=0)
            before += tl.sum(tl.where(line < me, part, 0), axis=0)
    own_blocks, _ = divided(total + (block - 1), block)
    first = tl.cumsum(own_blocks, axis=0) - own_blocks
    starts = first * block
    used = tl.sum(own_blocks, axis=0)

    free = starts + before
    rank = _rank(ids_ptr, map_ptr, me * chunk, own, last, experts, known, MAPPED, STEP, LINES)
    _place(sorted_ptr, me * chunk + side, own, free, rank)
    if ALONE != STEP:
        for more in range(STEP, chunk, STEP):
            at = me * chunk + more
            free += _count(own, BINS)
            own = _expert_of(ids_ptr, map_ptr, at + side, last, experts, known, MAPPED)
            rank = _rank(ids_ptr, map_ptr, at, own, last, experts, known, MAPPED, STEP, LINES)
            _place(sorted_ptr, at + side, own, free, rank)

    for extra in range(me, block, chunks):
        target = starts + total + extra
        tl.store(sorted_ptr + target, tl.zeros_like(target) + slots, mask=total + extra < own_blocks * block)
    for i in range(me, tl.max(own_blocks, axis=0), chunks):
        tl.store(owners_ptr + first + i, expert, mask=i < own_blocks)
    wide = tl.arange(0, 1024)
    for rest in range(used * block + me * 1024, blocks * block, chunks * 1024):
        tl.store(sorted_ptr + rest + wide, tl.zeros_like(wide) + slots, mask=rest + wide < blocks * block)
    # blocks are at most as many as slots
    OWNERS: tl.constexpr = ALONE if ALONE > 0 else 1024
    wide = tl.arange(0, OWNERS)
    if ALONE > 0:
        tl.store(owners_ptr + used + wide, tl.zeros_like(wide) - 1, mask=used + wide < blocks)
    else:
        for rest in range(used + me * OWNERS, blocks, chunks * OWNERS):
            tl.store(owners_ptr + rest + wide, tl.zeros_like(wide) - 1, mask=rest + wide < blocks)
    if me == 0:
        tl.store(padded_count_ptr, used * block)


_counter, _placer = Launcher(count_kernel, free=5), Launcher(place_kernel, free=8)


@PROVIDER.implements("moe_align", batch_invariant=True)
def moe_align(
    ids: Tensor, block: int, experts: int, expert_map: Tensor | None = None, num_valid_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    slots, k = ids.numel(), ids.shape[1]
    ids = ids.contiguous()
    blocks = most_blocks(slots, block, experts)
    tile = align_tile(machine(), slots, experts)
    sorted_ids, owners, padded_count = ids.new_empty(blocks * block), ids.new_empty(blocks), ids.new_empty(1)
    places = ids if expert_map is None else expert_map.contiguous()
    valid = ids if num_valid_tokens is None else num_valid_tokens
    numbers = slots, k, experts, 0 if expert_map is None else expert_map.shape[0], tile.chunk
    constants = (expert_map is not None, num_valid_tokens is not None, tile.bins, tile.step)
    counts = ids
    if tile.chunks > 1:
        counts = ids.new_empty(tile.chunks * tile.bins)
        _counter(tile.chunks, (ids, places, valid, counts), numbers, constants, tile.num_warps)
    _placer(
        tile.chunks,
        (ids, places, valid, counts, sorted_ids, owners, padded_count),
        (*numbers, tile.chunks, blocks, block),
        (*constants, tile.lines, tile.table, tile.chunk if tile.chunks == 1 else 0),
        tile.num_warps,
    )
    return sorted_ids, owners, padded_count
