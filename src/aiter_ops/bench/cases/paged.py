"""Cases of attention over paged caches: decoding with long contexts, batches with new sequences among them, plans."""

from __future__ import annotations

from typing import Any

import torch

from aiter_ops.core.op import Op, get_op
from aiter_ops.core.platforms import platform

from .case import Case, Sets, Shapes, Values, short
from .sequences import WHOLE, numbers, pages, part_of, ragged, starts, tick_of

BATCHES, CONTEXTS = (1, 16, 128), (2048, 8192, 32768)
Heads = tuple[int, int, int]
MODEL, SMALL = (64, 8, 128), (4, 2, 64)
"""heads, heads of keys, width: Llama-3-70B; for machines without a GPU"""

BLOCKS = {False: 16, True: 32}
"""Tokens in a page, by whether it is FP8's: the least at which everybody's FP8 kernels run."""

RESIDENT = 2
"""Programs a compute unit, of plans."""


def cases(op: Op, shapes: Shapes) -> list[Case]:
    if op.name == "paged_attention_plan":
        batches = shapes.counts((1, 128, 1024), (1, 128), (1, 16))
        return [plan(op, ragged(count, 512, 32768) if count > 1 else [8192]) for count in batches]
    if not shapes.gpu:
        return [attend(op, [count] * 3, False, heads=SMALL) for count in shapes.counts((), (), (40, 100))]
    if shapes.quick:
        return [attend(op, [8192] * 16, fp8) for fp8 in (False, True)]
    if op.name == "paged_attention_lse" and not shapes.rows:
        return [attend(op, [8192] * 16, fp8) for fp8 in (False, True)]
    batches = shapes.counts(BATCHES, (), ())
    found = [attend(op, [keys] * count, fp8) for fp8 in (False, True) for count in batches for keys in CONTEXTS]
    if not shapes.rows:
        found += [attend(op, ragged(32, 1024, 32768), False, planned=planned) for planned in (False, True)]
        found.append(attend(op, [4096] * 16, False, new=[1024] + [1] * 15))
    return found


def units() -> int:
    return platform().compute_units or 8


def attend(
    op: Op, keys: list[int], fp8: bool, new: list[int] | None = None, planned: bool = False, heads: Heads = MODEL
) -> Case:
    """Sequences with so many keys, FP8 or bf16, and new rows: one each unless `new` says otherwise."""
    even, batch = len(set(keys)) == 1, len(keys)
    contexts = short(keys[0]) if even else f"{short(min(keys))}–{short(max(keys))}"
    kind, rest = "FP8" if fp8 else "bf16", ", plan" if planned else ""
    rest += f", {max(new)} new in one" if new else ""
    sizes = {"batch": batch, "keys": max(keys), "fp8": int(fp8), "decode": int(new is None), "planned": int(planned)}
    narrow = sum(keys) * heads[0] > WHOLE
    return Case(
        op.name,
        f"{batch} × {contexts} {kind}{rest}",
        f"{batch} × {kind}",
        tick_of(contexts, even, planned, mixed=bool(new)),
        sizes,
        lambda draw: _values(draw, keys, new or [1] * batch, fp8, planned, heads),
        dots="bf16",
        alike=f"{kind} {batch}{rest}",
        part=part_of(op.outcome, "cu_seqlens_q", _narrow) if narrow else None,
    )


def _narrow(kwargs: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    at = torch.tensor(chosen, device=kwargs["seqused_k"].device)
    return {"seqused_k": kwargs["seqused_k"][at], "block_table": kwargs["block_table"][at]}


def _values(draw: Sets, keys: list[int], rows: list[int], fp8: bool, planned: bool, heads: Heads) -> Values:
    count, kv_heads, width = heads
    block, kind = BLOCKS[fp8], platform().fp8_dtype if fp8 else torch.bfloat16
    used = [-(-n // block) for n in keys]
    total, chosen = pages(draw, sum(used), 2 * block * kv_heads * width * kind.itemsize)
    at = _places(used, draw.device)
    values: Values = {
        "q": draw.normal(sum(rows), count, width),
        "k_cache": draw.once(lambda one: one.normal(total, block, kv_heads, width, dtype=kind)),
        "v_cache": draw.once(lambda one: one.normal(total, block, kv_heads, width, dtype=kind)),
        "out": draw.normal(sum(rows), count, width),
        "cu_seqlens_q": starts(draw, rows),
        "seqused_k": numbers(draw, keys),
        "block_table": [order[at] for order in chosen],
        "max_q": draw.same(max(rows)),
        "max_k": draw.same(max(keys)),
        "scale": draw.same(width**-0.5),
    }
    if fp8:
        values |= {"k_descale": draw.constant(1.1), "v_descale": draw.constant(0.5)}
    if planned:
        offsets, lengths = values["cu_seqlens_q"][0], values["seqused_k"][0]
        numbers_of = (count, kv_heads, width, block, max(rows), max(keys))
        made = get_op("paged_attention_plan").opaque(offsets, lengths, *numbers_of, programs=RESIDENT * units())
        values["plan"] = draw.same(made)
    return values


def _places(used: list[int], device: torch.device) -> torch.Tensor:
    """int64 [B, most]: which of all pages in turn is each sequence's n-th; its last one where there is no such."""
    counts = torch.tensor(used)
    ends = counts.cumsum(0)
    place = (ends - counts)[:, None] + torch.arange(max(used))[None, :]
    return torch.minimum(place, ends[:, None] - 1).to(device)


def plan(op: Op, keys: list[int]) -> Case:
    batch = len(keys)

    def values(draw: Sets) -> Values:
        return {
            "cu_seqlens_q": starts(draw, [1] * batch),
            "seqused_k": numbers(draw, keys),
            "heads": draw.same(MODEL[0]),
            "kv_heads": draw.same(MODEL[1]),
            "head_size": draw.same(MODEL[2]),
            "block_size": draw.same(BLOCKS[False]),
            "max_q": draw.same(1),
            "max_k": draw.same(max(keys)),
            "programs": draw.same(RESIDENT * units()),
        }

    return Case(op.name, f"{batch} sequences", "sequences", short(batch), {"batch": batch}, values, alike="plan")
