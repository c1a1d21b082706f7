"""Cases of writing to paged caches: new tokens, each in a page of its own (decoding), or filling pages (prefill)."""

from __future__ import annotations

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.platforms import platform

from . import rope
from .case import Case, Sets, Shapes, Values, short
from .rope import HEADS, KV_HEADS, WIDTH

BLOCK = 16
FEW = 64
"""Up to so many tokens, each is the new one of a sequence."""

LATENT, ROPE = 512, 64


def cases(op: Op, shapes: Shapes) -> list[Case]:
    tokens = shapes.counts(rope.TOKENS, (64, 4096), (1, 16))
    kinds = (False,) if shapes.quick or not shapes.gpu else (False, True)
    return [case(op, count, fp8) for fp8 in kinds for count in tokens]


def case(op: Op, tokens: int, fp8: bool) -> Case:
    kind = "FP8" if fp8 else "bf16"
    return Case(
        op.name,
        f"{tokens} tokens, {kind}",
        f"{kind} cache",
        short(tokens),
        {"tokens": tokens, "fp8": int(fp8)},
        lambda draw: _values(op, draw, tokens, fp8),
        alike=kind,
    )


def slots(draw: Sets, tokens: int) -> tuple[int, list[torch.Tensor]]:
    """Blocks of a cache for all sets, and for each set the slots of its tokens, int64: no slot is another set's."""
    each = tokens if tokens <= FEW else -(-tokens // BLOCK)
    total = each * draw.count
    order = torch.randperm(total, device=draw.device, generator=draw.generator).split(each)
    inside = torch.arange(BLOCK, device=draw.device)
    if tokens <= FEW:
        return total, [part * BLOCK + (part + 7) % BLOCK for part in order]
    return total, [(part[:, None] * BLOCK + inside).flatten()[:tokens] for part in order]


def _values(op: Op, draw: Sets, tokens: int, fp8: bool) -> Values:
    kind = platform().fp8_dtype if fp8 else torch.bfloat16
    blocks, chosen = slots(draw, tokens)
    if op.name == "concat_and_cache_mla":
        scale: Values = {"scale": draw.constant(0.5)} if fp8 else {}
        cache = draw.once(lambda one: one.normal(blocks, BLOCK, LATENT + ROPE, dtype=kind))
        parts = {"kv_c": draw.normal(tokens, LATENT), "k_pe": draw.normal(tokens, ROPE)}
        return parts | {"cache": cache, "slot_mapping": chosen} | scale
    values: Values = {
        "k": draw.normal(tokens, KV_HEADS, WIDTH),
        "v": draw.normal(tokens, KV_HEADS, WIDTH),
        "k_cache": draw.once(lambda one: one.normal(blocks, BLOCK, KV_HEADS, WIDTH, dtype=kind)),
        "v_cache": draw.once(lambda one: one.normal(blocks, BLOCK, KV_HEADS, WIDTH, dtype=kind)),
        "slot_mapping": chosen,
    }
    if fp8:
        values |= {"k_scale": draw.constant(0.5), "v_scale": draw.constant(0.25)}
    if op.name == "reshape_and_cache":
        return values
    values |= {
        "positions": rope.places(draw, tokens),
        "q": draw.normal(tokens, HEADS, WIDTH),
        "cos_sin_cache": rope.table(draw),
        "is_neox": draw.same(True),
    }
    if op.name == "qk_norm_rope_and_cache":
        weights = {f"{name}_weight": draw.normal(WIDTH, mean=1.0, scale=0.2) for name in "qk"}
        return values | weights | {"eps": draw.same(1e-6)}
    return values
