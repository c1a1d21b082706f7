"""Cases of mixtures of experts: a model's layer × tokens that spread evenly over the experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aiter_ops.core.op import Op

from .case import Case, Sets, Shapes, Values, short
from .gemm import codes

TOKENS = (1, 16, 128, 1024, 8192)
BLOCK = 128


@dataclass(frozen=True)
class Layer:
    """One layer's experts, k of them a token. hidden, intermediate: widths of the token and inside an expert."""

    name: str
    experts: int
    k: int
    hidden: int
    intermediate: int


LAYERS = (
    Layer("Mixtral-8x7B", 8, 2, 4096, 14336),
    Layer("Qwen3-30B-A3B", 128, 8, 2048, 768),
    Layer("DeepSeek-V3 TP8", 256, 8, 7168, 256),
)
SMALL = Layer("small", 8, 2, 256, 128)
"""for machines without a GPU"""

ALIGNED = ((8, 2), (128, 8), (256, 8), (512, 10))
"""experts, k"""


def cases(op: Op, shapes: Shapes) -> list[Case]:
    if op.name == "moe_align":
        pairs = ALIGNED[1:2] if shapes.quick else ALIGNED
        tokens = shapes.counts((1, 64, 4096, 16384), (1, 4096), (1, 64))
        return [align(op, count, *pair) for pair in pairs for count in tokens]
    if op.name != "fused_moe":
        return []
    layers = (SMALL,) if not shapes.gpu else LAYERS[1:2] if shapes.quick else LAYERS
    tokens = shapes.counts(TOKENS, (16, 1024), (1, 16))
    quants = ("per_block",) if shapes.quick else ("none", "per_block")
    return [fused(op, layer, quant, count) for layer in layers for quant in quants for count in tokens]


def fused(op: Op, layer: Layer, quant: str, tokens: int) -> Case:
    """quant: ``none`` (bf16) or ``per_block`` (FP8 in blocks of 128 × 128)."""
    kind = {"none": "bf16", "per_block": "block FP8"}[quant]
    sizes = {
        "tokens": tokens,
        "experts": layer.experts,
        "k": layer.k,
        "hidden": layer.hidden,
        "intermediate": layer.intermediate,
    }
    name = f"{layer.name} {kind}, {tokens} tokens"
    return Case(
        op.name,
        name,
        f"{layer.name} {kind}",
        short(tokens),
        sizes,
        lambda draw: _values(layer, quant, tokens, draw),
        dots="bf16" if quant == "none" else "fp8",
        alike=name,
    )


def align(op: Op, tokens: int, experts: int, k: int) -> Case:
    """Blocks as the fused kernels want them: few rows for few tokens."""
    block = 16 if tokens <= 64 else 128

    def values(draw: Sets) -> Values:
        return {"ids": spread(draw, tokens, experts, k), "block": draw.same(block), "experts": draw.same(experts)}

    return Case(
        op.name,
        f"{tokens}×{k} of {experts}, block {block}",
        f"E {experts}, k {k}",
        short(tokens),
        {"tokens": tokens, "experts": experts, "k": k, "block": block},
        values,
        alike=f"{experts}, {k}",
    )


def spread(draw: Sets, tokens: int, experts: int, k: int) -> list[torch.Tensor]:
    """ids [tokens, k] int32: k different experts a token, every expert equally likely.

    While all sets together need no more experts than there are, none is chosen twice, so that a set's weights are not
    in the cache from the one before.
    """
    if draw.count * tokens * k <= experts:
        order = _shuffled(draw, 1, experts)[0, : draw.count * tokens * k]
        return list(order.view(draw.count, tokens, k).to(torch.int32).unbind())
    return [_shuffled(draw, tokens, experts)[:, :k].to(torch.int32).contiguous() for _ in range(draw.count)]


def _shuffled(draw: Sets, rows: int, size: int) -> torch.Tensor:
    keys = torch.empty(rows, size, device=draw.device).uniform_(generator=draw.generator)
    return keys.argsort(-1)


def _values(layer: Layer, quant: str, tokens: int, draw: Sets) -> Values:
    experts, hidden, inner = layer.experts, layer.hidden, layer.intermediate
    up, down = (experts, 2 * inner, hidden), (experts, hidden, inner)
    weights = [w / w.sum(-1, keepdim=True) for w in draw.positive(tokens, layer.k, scale=1.0)]
    values: Values = {
        "x": draw.normal(tokens, hidden),
        "weights": weights,
        "ids": spread(draw, tokens, experts, layer.k),
    }
    if quant == "none":
        return values | {
            "w1": draw.once(lambda one: one.normal(*up, scale=hidden**-0.5)),
            "w2": draw.once(lambda one: one.normal(*down, scale=inner**-0.5)),
        }
    return values | {
        "w1": draw.once(lambda one: codes(one, *up)),
        "w2": draw.once(lambda one: codes(one, *down)),
        "w1_scale": draw.once(lambda one: _block_scale(one, up)),
        "w2_scale": draw.once(lambda one: _block_scale(one, down)),
        "quant": draw.same("per_block"),
    }


def _block_scale(one: Sets, shape: tuple[int, int, int]) -> list[torch.Tensor]:
    """A scale for 128 × 128 codes of weights that leave a unit input about unit."""
    experts, rows, columns = shape
    return one.positive(experts, -(-rows // BLOCK), -(-columns // BLOCK), scale=0.01 * columns**-0.5)
