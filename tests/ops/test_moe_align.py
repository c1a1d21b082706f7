"""Slots in the order of experts, against the definition in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aiter_ops as ops
from aiter_ops.ops.moe.align import most_blocks

Aligned = tuple[list[int], list[int], int]


def align(
    ids: torch.Tensor,
    block: int,
    experts: int,
    places: list[int] | None = None,
    valid: int | None = None,
    mistake: str = "",
) -> Aligned:
    """sorted_ids, block_experts and padded_count."""
    slots = ids.numel()
    queues: list[list[int]] = [[] for _ in range(experts)]
    for t, row in enumerate(ids.tolist()):
        for j, expert in enumerate(row):
            if places is not None:
                expert = places[expert] if 0 <= expert < len(places) else -1
            if 0 <= expert < experts and (valid is None or t < valid):
                queues[expert].append(t * len(row) + j)
    order: list[int] = []
    owners: list[int] = []
    for expert, queue in enumerate(queues):
        if mistake == "unstable":
            queue.reverse()
        blocks = -(-len(queue) // block)
        if mistake == "a block for every expert":
            blocks = max(blocks, 1)
        order += queue + [slots] * (blocks * block - len(queue))
        owners += [expert] * blocks
    most = most_blocks(slots, block, experts)
    return order + [slots] * (most * block - len(order)), owners + [-1] * (most - len(owners)), len(order)


def run(ids: torch.Tensor, block: int, experts: int, places: list[int] | None, valid: int | None) -> Aligned:
    expert_map = None if places is None else torch.tensor(places, dtype=torch.int32)
    count = None if valid is None else torch.tensor([valid], dtype=torch.int32)
    sorted_ids, owners, padded = ops.moe_align(ids, block, experts, expert_map, count)
    assert {sorted_ids.dtype, owners.dtype, padded.dtype} == {torch.int32}
    return sorted_ids.tolist(), owners.tolist(), int(padded)


@st.composite
def arguments(draw: st.DrawFn) -> tuple[Any, ...]:
    tokens, k, experts = draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 20))
    highest = draw(st.sampled_from((0, experts - 1, experts + 2)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    ids = torch.randint(-1, highest + 1, (tokens, k), generator=generator, dtype=torch.int32)
    if draw(st.booleans()):
        ids = ids.t().contiguous().t()
    places = None
    if draw(st.booleans()):
        total = draw(st.integers(1, 24))
        places = torch.randint(-1, experts, (total,), generator=generator).tolist()
    return ids, draw(st.integers(1, 20)), experts, places, draw(st.sampled_from((None, -2, 0, 1, 5, 99)))


@given(arguments())
@settings(max_examples=150, deadline=None)
def test_the_definition(args: tuple[Any, ...]) -> None:
    assert run(*args) == align(*args)


@pytest.mark.parametrize("mistake", ["unstable", "a block for every expert"])
def test_mistakes_are_seen(mistake: str) -> None:
    ids = torch.tensor([[0, 2], [2, 5], [0, 5]], dtype=torch.int32)
    args = (ids, 4, 8, None, None)
    assert run(*args) == align(*args)
    assert run(*args) != align(*args, mistake=mistake)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_what_is_in_use_always_fits(slots: int, block: int, experts: int, seed: int) -> None:
    """And the bound is met: no smaller size would do for every routing of these shapes."""
    ids = torch.randint(0, experts, (slots, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    most = most_blocks(slots, block, experts)
    assert run(ids, block, experts, None, None)[2] <= most * block
    spread = torch.tensor([*range(min(slots, experts)), *[0] * max(0, slots - experts)], dtype=torch.int32)[:, None]
    used = [run(spread.where(spread > 0, first), block, experts, None, None)[2] for first in range(min(slots, experts))]
    assert max(used) > (most - 2) * block


IDS = torch.zeros(3, 2, dtype=torch.int32)
WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ops.moe_align(IDS.long(), 4, 8), TypeError, r"moe_align: ids is int64; accepted: int32"),
    (lambda: ops.moe_align(IDS[0], 4, 8), ValueError, r"ids has shape \[2\]; accepted: \[T, k\]"),
    (lambda: ops.moe_align(IDS[:, :0], 4, 8), ValueError, r"ids has shape \[3, 0\]"),
    (lambda: ops.moe_align(IDS, 0, 8), ValueError, r"block=0; accepted: 1 or more"),
    (lambda: ops.moe_align(IDS, 4, 0), ValueError, r"experts=0; accepted: 1 or more"),
    (lambda: ops.moe_align(IDS, 2**20, 2**12), ValueError, r"fewer than 2\^31 slots"),
    (lambda: ops.moe_align(IDS, 4, 8, IDS), ValueError, r"expert_map has shape \[3, 2\]; accepted: \[E\]"),
    (lambda: ops.moe_align(IDS, 4, 8, IDS[0].long()), TypeError, r"expert_map is int64"),
    (lambda: ops.moe_align(IDS, 4, 8, None, IDS[0]), ValueError, r"num_valid_tokens has shape \[2\]"),
    (lambda: ops.moe_align(IDS, 4, 8, IDS[0].to("meta")), ValueError, r"expert_map is on meta, ids on cpu"),
    (lambda: ops.moe_align([[1]], 4, 8), TypeError, r"ids is list; a torch.Tensor"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for _, _, text in WRONG])
def test_wrong_arguments_are_named(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()
