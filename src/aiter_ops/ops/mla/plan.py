"""A schedule for MLA decoding: equal shares of all key blocks, cut across sequences."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_value
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample

from . import cache as c
from .samples import plan_samples

BLOCK = 64
"""Keys of a block, the unit of a share."""

ROWS = 64
"""Rows (heads × queries of a sequence) that a program is taken to hold."""

OVERHEAD = 2
"""What a sequence costs beside its key blocks, in blocks: q is read and a result written."""

EXACT = Tolerance(ulps=0, fp32=0.0, flips=0.0)


def part_count(programs: int, heads: int, max_q: int) -> int:
    """Parts that give `programs` programs when each is done once for every ROWS rows of the longest sequence."""
    return max(programs // -(-heads * max_q // ROWS), 1)


def plan_size(parts: int, batch: int) -> int:
    return 4 * parts + 2 * batch


def parts_in(plan: Tensor, batch: int) -> int:
    """The number of parts of a plan for so many sequences; 0 where it has no such form."""
    rest = plan.shape[0] - 2 * batch
    return rest // 4 if rest > 0 and rest % 4 == 0 else 0


def _check(
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_last_page_lens: Tensor,
    heads: int,
    page_size: int,
    max_q: int,
    programs: int,
) -> None:
    name = "mla_decode_plan"
    batch = c.check_indptr(name, "qo_indptr", qo_indptr)
    c.check_table(name, "kv_indptr", kv_indptr, batch + 1)
    c.check_table(name, "kv_last_page_lens", kv_last_page_lens, batch)
    for word, value in (("heads", heads), ("page_size", page_size), ("max_q", max_q), ("programs", programs)):
        if value < 1:
            raise bad_value(name, word, value, "1 or more")


def _samples(make: Make) -> Iterator[Sample]:
    yield from plan_samples(make)


@op(
    "mla",
    samples=_samples,
    results=("plan",),
    tolerance=EXACT,
    fake=lambda qo_indptr, kv_indptr, kv_last_page_lens, heads, page_size, max_q, programs: qo_indptr.new_empty(
        (plan_size(part_count(programs, heads, max_q), qo_indptr.shape[0] - 1),)
    ),
    check=_check,
)
def mla_decode_plan(
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_last_page_lens: Tensor,
    heads: int,
    page_size: int,
    max_q: int,
    programs: int,
) -> Tensor:
    """A schedule for `mla_decode`: which keys of which sequences each of P parts of a launch does.

    It is made once a step and serves every layer. Its size follows from `programs`, heads, max_q and B alone, and it is
    made on the device without synchronising, so that `plan.copy_(mla_decode_plan(...))` refills it under a CUDA graph.
    qo_indptr, kv_indptr: int32 [B + 1], kv_last_page_lens: int32 [B], page_size, max_q: as for `mla_decode`. heads: H.
    programs: how many programs the device runs at once, its compute units or a small multiple of them.
    P = max(programs // ceil(heads · max_q / 64), 1): a part is done once for every 64 rows of a sequence.

    Sequence b has n_b blocks of 64 keys, the last of them shorter; none where it has no rows. It costs n_b + 2 (nothing
    where n_b is 0), and starts at C_b, the cost of the sequences before it; its block j lies at C_b + 2 + j. A part's
    share is S = max(ceil(C_B / P), 1), and part i does the blocks that lie from i·S to (i + 1)·S - 1.
    Returns int32 [4·P + 2·B]: for every part (first sequence, first block in it, last sequence + 1, block that ends the
    last sequence's share), then for every sequence (first part that does blocks of it, number of such parts). The first
    sequence is the number of those that end (C_b + cost) at i·S or before; the last is the last with C_b + 2 below
    (i + 1)·S, and no earlier than the first - 1; both blocks are cut to 0 .. n_b. A part with no last sequence has
    zeros for its blocks, and a sequence without blocks (0, 0).
    """
    parts, blocks = part_count(programs, heads, max_q), c.key_counts(kv_indptr, kv_last_page_lens, page_size)
    blocks = torch.where(qo_indptr.long().diff() > 0, (blocks + BLOCK - 1) // BLOCK, 0)
    cost = torch.where(blocks > 0, blocks + OVERHEAD, 0)
    ends = cost.cumsum(0)
    starts = ends - cost
    total = int(ends[-1]) if len(ends) else 0
    share = max(-(-total // parts), 1)
    low = torch.arange(parts, device=qo_indptr.device) * share
    first = (ends[None, :] <= low[:, None]).sum(1)
    last = torch.maximum((starts[None, :] + OVERHEAD < (low + share)[:, None]).sum(1), first)
    lays = torch.cat((starts + OVERHEAD, starts.new_zeros(1)))  # one more: a part may start past the last sequence
    held = torch.cat((blocks, blocks.new_zeros(1)))

    def block(sequence: Tensor, at: Tensor) -> Tensor:
        inside = torch.minimum((at - lays[sequence]).clamp(min=0), held[sequence])
        return torch.where(last > first, inside, 0)

    ending = (last - 1).clamp(min=0)
    of_parts = torch.stack((first, block(first, low), last, block(ending, low + share)), 1)
    begin, end = (starts + OVERHEAD) // share, (starts + OVERHEAD + blocks - 1) // share
    of_sequences = torch.stack((begin, end - begin + 1), 1) * (blocks > 0)[:, None]
    return torch.cat((of_parts.flatten(), of_sequences.flatten())).to(torch.int32)
