"""Cases of rotary embedding: tokens × the heads of Llama-3-8B, each at a position of its own."""

from __future__ import annotations

import torch

from aiter_ops.core.op import Op

from .case import Case, Sets, Shapes, Values, short

TOKENS = (1, 64, 4096)
HEADS, KV_HEADS, WIDTH = 32, 8, 128
POSITIONS = 32768
BASE = 500000.0
SECTION = [16, 24, 24]
"""Qwen2-VL's"""


def cases(op: Op, shapes: Shapes) -> list[Case]:
    return [case(op, count) for count in shapes.counts(TOKENS, (1, 4096), (1, 16))]


def case(op: Op, tokens: int) -> Case:
    return Case(
        op.name,
        f"{tokens} tokens",
        f"H {HEADS}/{KV_HEADS}, D {WIDTH}",
        short(tokens),
        {"tokens": tokens},
        lambda draw: _values(op, draw, tokens),
        alike="rope",
    )


def angles(draw: Sets, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 cosines and sines [..., WIDTH / 2] of positions [...]."""
    exponent = torch.arange(0, WIDTH, 2, device=draw.device, dtype=torch.float32) / WIDTH
    turned = positions[..., None].float() * BASE**-exponent
    return turned.cos(), turned.sin()


def table(draw: Sets) -> list[torch.Tensor]:
    """[POSITIONS, WIDTH] in bf16, as engines hold it: cosines, then sines."""
    places = torch.arange(POSITIONS, device=draw.device)
    return draw.same(torch.cat(angles(draw, places), -1).to(torch.bfloat16))


def places(draw: Sets, *shape: int) -> list[torch.Tensor]:
    return draw.integers(0, POSITIONS, *shape, dtype=torch.int64)


def _values(op: Op, draw: Sets, tokens: int) -> Values:
    if op.name == "apply_rope":
        return _functional(draw, tokens)
    shared: Values = {
        "q": draw.normal(tokens, HEADS * WIDTH),
        "k": draw.normal(tokens, KV_HEADS * WIDTH),
        "head_size": draw.same(WIDTH),
        "cos_sin_cache": table(draw),
    }
    if op.name == "mrope":
        return shared | {"positions": places(draw, 3, tokens), "section": draw.same(SECTION)}
    return shared | {"positions": places(draw, tokens), "is_neox": draw.same(True)}


def _functional(draw: Sets, tokens: int) -> Values:
    """As transformers has them: [1, H, S, D] is a view of [1, S, H, D], the angles come twice."""
    found = [angles(draw, at) for at in places(draw, 1, tokens)]
    cos, sin = ([torch.cat((part[i],) * 2, -1).to(torch.bfloat16) for part in found] for i in (0, 1))
    q, k = (draw.normal(1, tokens, heads, WIDTH) for heads in (HEADS, KV_HEADS))
    return {"q": [t.transpose(1, 2) for t in q], "k": [t.transpose(1, 2) for t in k], "cos": cos, "sin": sin}
