"""Cases of multi-head latent attention: decoding from cached latents, its plans, and latents made keys and values."""

from __future__ import annotations

from typing import Any

import torch

from aiter_ops.core.op import Op, get_op
from aiter_ops.core.platforms import platform

from .case import Case, Sets, Shapes, Values, short
from .gemm import codes
from .paged import units
from .sequences import WHOLE, ends_of, numbers, pages, part_of, ragged, rows_of, starts, tick_of

BATCHES, CONTEXTS = (1, 64, 128), (1024, 4096, 8192, 32768)
HEADS = (128, 16)
"""DeepSeek-V3 on one GPU and on eight"""

LATENT, ROPE, NOPE, VALUE = 512, 64, 128, 128
SCALE = (NOPE + ROPE) ** -0.5
PAGE = 64
GATHERED_PAGE = 16
"""Tokens in a page that latents are gathered from: the most at which everybody's kernels run."""


def cases(op: Op, shapes: Shapes) -> list[Case]:
    if op.name == "mla_decode_plan":
        batches = shapes.counts((1, 128, 1024), (1, 128), (1, 16))
        return [plan(op, ragged(count, 512, 32768) if count > 1 else [8192]) for count in batches]
    if op.name == "gather_kv_b_proj":
        tokens = shapes.counts((512, 8192), (8192,), (16, 64))
        heads, kinds = (16, (False, True)) if shapes.gpu else (2, (False,))
        return [gather(op, count, heads, fp8) for fp8 in kinds for count in tokens]
    if not shapes.gpu:
        return [decode(op, [count] * 2, 4, False) for count in shapes.counts((), (), (50, 130))]
    if shapes.quick or (op.name == "mla_decode_lse" and not shapes.rows):
        return [decode(op, [4096] * 64, 128, fp8) for fp8 in (False, True)]
    batches = shapes.counts(BATCHES, (), ())
    found = [
        decode(op, [keys] * count, heads, fp8)
        for heads in HEADS
        for fp8 in (False, True)
        for count in batches
        for keys in CONTEXTS
    ]
    if not shapes.rows:
        found += [decode(op, ragged(64, 512, 16384), 128, False, planned=planned) for planned in (False, True)]
        found.append(decode(op, [4096] * 64, 128, False, planned=True))
    return found


def decode(op: Op, keys: list[int], heads: int, fp8: bool, planned: bool = False) -> Case:
    """One new row a sequence with so many keys; FP8: of queries and cache."""
    even, batch = len(set(keys)) == 1, len(keys)
    contexts = short(keys[0]) if even else f"{short(min(keys))}–{short(max(keys))}"
    kind, rest = "FP8" if fp8 else "bf16", ", plan" if planned else ""
    sizes = {"batch": batch, "keys": max(keys), "heads": heads, "fp8": int(fp8), "planned": int(planned)}
    return Case(
        op.name,
        f"H {heads}, {batch} × {contexts} {kind}{rest}",
        f"H {heads}, {batch} × {kind}",
        tick_of(contexts, even, planned),
        sizes | {"tokens": sum(keys)},
        lambda draw: _decoded(draw, keys, heads, fp8, planned),
        dots="fp8" if fp8 else "bf16",
        alike=f"{heads} {kind} {batch}",
        part=part_of(op.outcome, "qo_indptr", _narrow) if sum(keys) * heads > WHOLE else None,
    )


def _narrow(kwargs: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    indptr = kwargs["kv_indptr"]
    at = torch.tensor(chosen, device=indptr.device)
    return {
        "kv_indptr": ends_of(indptr, chosen),
        "kv_indices": kwargs["kv_indices"][rows_of(indptr, chosen)],
        "kv_last_page_lens": kwargs["kv_last_page_lens"][at],
    }


def _tables(draw: Sets, keys: list[int], page: int, row_bytes: int) -> tuple[int, Values]:
    """The pages of the cache, and the arguments that say whose they are."""
    used = [-(-n // page) for n in keys]
    total, chosen = pages(draw, sum(used), page * row_bytes)
    return total, {"kv_indptr": starts(draw, used), "kv_indices": chosen}


def _last(draw: Sets, keys: list[int], page: int) -> list[torch.Tensor]:
    return numbers(draw, [(n - 1) % page + 1 for n in keys])


def _decoded(draw: Sets, keys: list[int], heads: int, fp8: bool, planned: bool) -> Values:
    kind, batch, width = platform().fp8_dtype if fp8 else torch.bfloat16, len(keys), LATENT + ROPE
    total, tables = _tables(draw, keys, PAGE, width * kind.itemsize)
    values: Values = tables | {
        "q": draw.normal(batch, heads, width, dtype=kind),
        "kv_buffer": draw.once(lambda one: one.normal(total, PAGE, width, dtype=kind)),
        "out": draw.normal(batch, heads, LATENT),
        "qo_indptr": starts(draw, [1] * batch),
        "kv_last_page_lens": _last(draw, keys, PAGE),
        "max_q": draw.same(1),
        "scale": draw.same(SCALE),
        "page_size": draw.same(PAGE),
    }
    if fp8:
        values |= {"q_scale": draw.constant(0.9), "kv_scale": draw.constant(1.1)}
    if planned:
        given = (values[name][0] for name in ("qo_indptr", "kv_indptr", "kv_last_page_lens"))
        values["plan"] = draw.same(get_op("mla_decode_plan").opaque(*given, heads, PAGE, 1, units()))
    return values


def plan(op: Op, keys: list[int]) -> Case:
    batch = len(keys)

    def values(draw: Sets) -> Values:
        return {
            "qo_indptr": starts(draw, [1] * batch),
            "kv_indptr": starts(draw, [-(-n // PAGE) for n in keys]),
            "kv_last_page_lens": _last(draw, keys, PAGE),
            "heads": draw.same(HEADS[0]),
            "page_size": draw.same(PAGE),
            "max_q": draw.same(1),
            "programs": draw.same(units()),
        }

    return Case(op.name, f"{batch} sequences", "sequences", short(batch), {"batch": batch}, values, alike="plan")


def gather(op: Op, tokens: int, heads: int, fp8: bool) -> Case:
    """The context of eight sequences, or fewer where they would be short; fp8: of the weight, a scale a block."""
    batch = max(1, min(8, tokens // 16))
    keys = [tokens // batch] * batch

    def values(draw: Sets) -> Values:
        total, tables = _tables(draw, keys, GATHERED_PAGE, (LATENT + ROPE) * 2)
        rows = heads * (NOPE + VALUE)
        weight = codes(draw, rows, LATENT) if fp8 else draw.normal(rows, LATENT, scale=LATENT**-0.5)
        scale: Values = {}
        if fp8:
            scale = {"weight_scale": draw.positive(-(-rows // 128), LATENT // 128, scale=0.01 * LATENT**-0.5)}
        buffer = draw.once(lambda one: one.normal(total, GATHERED_PAGE, LATENT + ROPE))
        keys_of, values_of = draw.normal(tokens, heads, NOPE + ROPE), draw.normal(tokens, heads, VALUE)
        given = {"kv_buffer": buffer, "weight": weight, "k": keys_of, "v": values_of}
        return tables | given | scale | {"cu_seqlens": starts(draw, keys)}

    kind = "FP8 weight" if fp8 else "bf16"
    sizes = {"tokens": tokens, "heads": heads, "fp8": int(fp8)}
    name = f"{tokens} tokens, H {heads}, {kind}"
    return Case(op.name, name, f"H {heads}, {kind}", short(tokens), sizes, values, dots="bf16", alike=kind)
