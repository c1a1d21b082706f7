"""Schedules for attention over paged sequences: equal shares of keys for a fixed number of programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample

MOST_ROWS = 64
"""Sequences with at most so many rows, query heads of one kv head counted each, are scheduled; longer ones are not."""

UNIT_ELEMENTS = 2**13
"""Elements of keys of one head in a unit of work."""

OVERHEAD = 2
"""Units that beginning and ending a piece of work are worth."""

LEAST_SHARE = 2
"""Units in a share at least."""

WIDTH = 4
"""Integers in a row of a plan."""


def unit_keys(head_size: int, block_size: int) -> int:
    """Keys of a unit: about `UNIT_ELEMENTS` elements, in whole blocks."""
    keys = max(16, UNIT_ELEMENTS // (1 << (head_size - 1).bit_length()))
    return -(-keys // block_size) * block_size


def programs_of(sequences: int, kv_heads: int, head_size: int, block_size: int, max_k: int, programs: int) -> int:
    """Shares of a plan: `programs`, or as many as there can be units where that is less; at least one."""
    return max(1, min(programs, sequences * kv_heads * max(1, -(-max_k // unit_keys(head_size, block_size)))))


def _samples(make: Make) -> Iterator[Sample]:
    drawn = [int(n) for n in make.permutation(64)]

    def of(rows: list[int], keys: list[int], *rest: int) -> tuple[object, ...]:
        offsets = [sum(rows[:i]) for i in range(len(rows) + 1)]
        return make.integers(offsets), make.integers(keys), *rest, max(rows, default=0), max(keys, default=0)

    keys = [n * 37 + 1 for n in drawn[:9]]
    yield Sample("decode 9", of([1] * 9, keys, 32, 8, 128, 16))
    yield Sample("one sequence", of([1], [5000], 8, 1, 64, 64), {"programs": 24})
    yield Sample("zero rows", of([], [], 32, 8, 128, 16))
    yield Sample("no keys, and no rows", of([1, 0, 1, 3, 0], [0, 700, 90, 0, 0], 16, 2, 256, 1), {"programs": 7})
    mixed = [1, 9, 4, 300, 1, 17], [n * 61 + 300 for n in drawn[10:16]]
    yield Sample("mixed, some too long", of(*mixed, 16, 4, 96, 16), {"programs": 33})
    yield Sample("window", of(*mixed, 16, 4, 128, 32), {"programs": 20, "window": [255, -1]})
    yield Sample("more rows than keys", of([4, 4], [2, 4], 4, 4, 80, 5), {"window": [1, 0]})
    yield Sample("many", of([1] * 300, [drawn[i % 64] * 90 for i in range(300)], 8, 8, 64, 16), {"programs": 13})
    lengths = [drawn[i % 64] * 512 for i in range(1024)]
    yield Sample("Llama-3-8B, 1024 sequences", of([1] * 1024, lengths, 32, 8, 128, 16), {"programs": 608}, "model")
    yield Sample("Llama-3-70B, one rank of 8", of([2] * 7, [131072, *lengths[:6]], 8, 1, 128, 64), {}, "model")


def _check(
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    heads: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    max_q: int,
    max_k: int,
    window: list[int],
    programs: int,
) -> None:
    name = "paged_attention_plan"
    for argument, tensor in (("cu_seqlens_q", cu_seqlens_q), ("seqused_k", seqused_k)):
        if tensor.dtype != torch.int32:
            raise bad_dtype(name, argument, tensor.dtype, (torch.int32,))
    if seqused_k.dim() != 1:
        raise bad_shape(name, "seqused_k", seqused_k, "[B]")
    if list(cu_seqlens_q.shape) != [seqused_k.shape[0] + 1]:
        raise bad_shape(name, "cu_seqlens_q", cu_seqlens_q, f"[{seqused_k.shape[0] + 1}], one more than seqused_k")
    for argument, value in (("kv_heads", kv_heads), ("head_size", head_size), ("block_size", block_size)):
        if value < 1:
            raise bad_value(name, argument, value, "1 or more")
    if heads < 1 or heads % kv_heads:
        raise bad_value(name, "heads", heads, f"a multiple of kv_heads={kv_heads}")
    for argument, value in (("max_q", max_q), ("max_k", max_k)):
        if value < 0:
            raise bad_value(name, argument, value, "0 or more")
    if window[0] < -1 or window[1] < -1:
        raise bad_value(name, "window", window, "-1 or more on both sides")
    if programs < 1:
        raise bad_value(name, "programs", programs, "1 or more")


def _fake(
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    heads: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    max_q: int,
    max_k: int,
    window: Sequence[int] = (-1, -1),
    programs: int = 256,
) -> Tensor:
    count = programs_of(seqused_k.shape[0], kv_heads, head_size, block_size, max_k, programs)
    return seqused_k.new_empty((count + seqused_k.shape[0], WIDTH))


@op(
    "attention",
    samples=_samples,
    results=("plan",),
    tolerance=Tolerance(ulps=0, fp32=0.0),
    fake=_fake,
    check=_check,
    flops=lambda cu_seqlens_q, *rest: 8 * cu_seqlens_q.numel(),
)
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
    """A schedule for `paged_attention`: equal shares of all keys to read, in one line, for a number of programs.

    cu_seqlens_q [B+1], seqused_k [B], both int32, max_q, max_k, window: as the attention is given them. heads,
    kv_heads, head_size, block_size: its shapes. programs: how many share the work; a machine's compute units, or a
    small multiple. The plan serves every layer of a step that has the same lengths, shapes and window.

    Work is counted in units of `unit_keys(head_size, block_size)` keys of one kv head: as many as hold about 2^13
    elements, in whole blocks. A sequence b is scheduled where it has at least one row and, times heads / kv_heads, at
    most 64. Each of its kv heads reads the units from first_b, the one with the first key its first row sees in the
    window, to its last key: units_b of them, at least 1 (also for a context without keys). A head costs units_b + 2,
    other sequences nothing. All heads of all sequences in their order are laid out in one line, in which sequence b
    begins at start_b and is kv_heads · (units_b + 2) long. A share is the line's length over the number of programs,
    rounded up, at least 2; program p has the part of the line from p · share on.

    Returns the plan [P + B, 4] int32, where P is `programs`, or B · kv_heads · (units of max_k keys, at least 1)
    where that is less, at least 1: its size follows from shapes and numbers alone, so that it can be refilled in place
    under a captured graph. Row p < P: sequence, kv head and unit (counted from first_b; the last two of a head hold no
    keys) where program p begins, and the length of its part: a share, or what is left of the line; all zero where
    nothing is left. Row P + b: start_b, units_b (0: not scheduled), first_b, share.
    Raises TypeError for another dtype, ValueError for another shape or number. The line must be below 2^31 units.
    """
    device, batch = seqused_k.device, seqused_k.shape[0]
    unit = unit_keys(head_size, block_size)
    count = programs_of(batch, kv_heads, head_size, block_size, max_k, programs)
    keys = seqused_k.long()
    rows = cu_seqlens_q[1:].long() - cu_seqlens_q[:-1].long()
    scheduled = (rows > 0) & (rows * (heads // kv_heads) <= MOST_ROWS)
    first_key = (keys - rows - window[0]).clamp(min=0) if window[0] >= 0 else torch.zeros_like(keys)
    first = torch.where(scheduled, first_key // unit, 0)
    units = torch.where(scheduled, ((keys + unit - 1) // unit - first).clamp(min=1), 0)
    cost = torch.where(scheduled, units + OVERHEAD, 0)
    ends = (cost * kv_heads).cumsum(0)
    start, total = ends - cost * kv_heads, cost.sum() * kv_heads
    share = ((total + count - 1) // count).clamp(min=LEAST_SHARE)

    at = torch.arange(count, device=device) * share
    length = (total - at).clamp(min=0).minimum(share)
    plan = torch.zeros((count + batch, WIDTH), dtype=torch.int64, device=device)
    if batch:
        sequence = torch.searchsorted(ends, at, right=True).clamp(max=batch - 1)
        inside = at - start[sequence]
        each = cost[sequence].clamp(min=1)
        row = torch.stack((sequence, inside // each, inside % each, length), -1)
        plan[:count] = torch.where(length[:, None] > 0, row, 0)
        plan[count:] = torch.stack((start, units, first, share.expand(batch)), -1)
    return plan.to(torch.int32)
