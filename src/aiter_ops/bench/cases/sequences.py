"""What cases of attention share: pages that sets divide among them, packed lengths, and a part of a batch to check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from .case import Part, Sets, Tensors

OWN_BYTES = 256 << 20
"""A set whose pages hold so much passes every cache by itself: all sets may have the same ones."""

THIN_BYTES = 32 << 20
"""Pages of thin sets hold no more."""

SAMPLED = 4
"""Sequences of a large batch that the reference does."""

WHOLE = 2**26
"""Keys times heads of a batch up to which the reference does all of it: about a quarter of a second on an H200."""


def pages(draw: Sets, count: int, page_bytes: int) -> tuple[int, list[torch.Tensor]]:
    """How many pages a cache for all sets has, and for each set its `count` page numbers, int32, in no order.

    Sets have pages of their own until one alone passes the last-level cache many times over.
    """
    own = count * page_bytes < OWN_BYTES
    total = count * (draw.count if own else 1)
    orders = [_order(draw, total) for _ in range(1 if own else draw.count)]
    if draw.thin:
        total = min(total, max(1, THIN_BYTES // page_bytes))
        orders = [order % total for order in orders]
    return total, list(orders[0].split(count)) if own else orders


def _order(draw: Sets, count: int) -> torch.Tensor:
    return torch.randperm(count, device=draw.device, generator=draw.generator, dtype=torch.int64).to(torch.int32)


def numbers(draw: Sets, values: Sequence[int], dtype: torch.dtype = torch.int32) -> list[torch.Tensor]:
    """A vector that is the same in all sets."""
    return draw.same(torch.tensor(list(values), dtype=dtype, device=draw.device))


def starts(draw: Sets, counts: Sequence[int]) -> list[torch.Tensor]:
    """int32 [B + 1]: where each of the sequences begins, and where the last ends."""
    return numbers(draw, [0, *accumulate(counts)])


def ragged(batch: int, least: int, most: int) -> list[int]:
    """Lengths from `least` to `most`, about equal on a logarithmic scale, long and short ones mixed."""
    step = next(s for s in (37, 29, 23, 1) if batch % s or s == 1)
    share = [(i * step % batch) / max(batch - 1, 1) for i in range(batch)]
    return [int(least * (most / least) ** part) for part in share]


def some(batch: int) -> list[int]:
    """`SAMPLED` sequences of a batch, first and last among them; all of a smaller one."""
    if batch <= SAMPLED:
        return list(range(batch))
    return [i * (batch - 1) // (SAMPLED - 1) for i in range(SAMPLED)]


def rows_of(offsets: torch.Tensor, sequences: Sequence[int]) -> torch.Tensor:
    """int64: the rows of these sequences, by int32 offsets [B + 1]."""
    ends = offsets.tolist()
    at = [row for b in sequences for row in range(ends[b], ends[b + 1])]
    return torch.tensor(at, dtype=torch.int64, device=offsets.device)


def ends_of(offsets: torch.Tensor, sequences: Sequence[int]) -> torch.Tensor:
    """Offsets [n + 1] of these sequences alone."""
    counts = offsets.diff()[torch.tensor(list(sequences), device=offsets.device)]
    return torch.cat((counts.new_zeros(1), counts.cumsum(0))).to(torch.int32)


def picker(names: Sequence[str], rows: torch.Tensor) -> Callable[[Tensors], Tensors]:
    """Of an outcome with these names those rows: of ``lse`` [H, T] columns."""

    def pick(outcome: Tensors) -> Tensors:
        return tuple(
            t if t is None else t[:, rows] if name == "lse" else t[rows]
            for name, t in zip(names, outcome, strict=False)
        )

    return pick


def part_of(
    names: Sequence[str], indptr: str, narrow: Callable[[dict[str, Any], list[int]], dict[str, Any]]
) -> Callable[[dict[str, Any]], Part]:
    """A `Case.part` of some sequences, whose rows the argument `indptr` gives. narrow: arguments other than q and out."""

    def part(kwargs: dict[str, Any]) -> Part:
        offsets = kwargs[indptr]
        chosen = some(len(offsets) - 1)
        rows = rows_of(offsets, chosen)
        ours = {"q": kwargs["q"][rows], "out": kwargs["out"][rows], indptr: ends_of(offsets, chosen), "plan": None}
        return kwargs | ours | narrow(kwargs, chosen), picker(names, rows)

    return part


def tick_of(contexts: str, even: bool, planned: bool, mixed: bool = False) -> str:
    """A case's place in the picture: its contexts, or the word for what it has that its neighbours have not."""
    return "plan" if planned else "mixed" if mixed else contexts if even else "ragged"
