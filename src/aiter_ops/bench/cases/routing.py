"""Cases of routing: tokens × experts, as models have them."""

from __future__ import annotations

from typing import Any

import torch

from aiter_ops.core.op import Op

from .case import Case, Sets, Shapes, Values, short

TOKENS = (1, 64, 4096, 16384)

Choice = dict[str, Any]
"""E, k, and the arguments that say how to choose"""

_PLAIN: list[Choice] = [{"E": e, "k": k} for e, k in ((8, 2), (64, 6), (128, 8), (256, 8), (512, 10))]
_V2: Choice = {"E": 160, "k": 6, "groups": 8, "topk_groups": 3}
_V3: Choice = {"E": 256, "k": 8, "groups": 8, "topk_groups": 4}
_K2: Choice = {"E": 384, "k": 8, "groups": 1, "topk_groups": 1}

CHOICES: dict[str, list[Choice]] = {
    "topk_softmax": [c | {"renormalize": True} for c in _PLAIN],
    "topk_sigmoid": [{"E": 16, "k": 1, "renormalize": False}, {"E": 128, "k": 8, "renormalize": True}],
    "topk_softplus_sqrt": [{"E": 256, "k": 6, "renormalize": True, "scaling": 1.5}],
    "grouped_topk": [_V2 | {"renormalize": False, "scaling": 16.0}, _V3 | {"renormalize": True, "scoring": "sigmoid"}],
    "biased_grouped_topk": [c | {"renormalize": True, "scaling": 2.5} for c in (_V3, _K2)],
}
"""Mixtral, DeepSeek-V2-Lite, Qwen3, Qwen3-Next; Llama 4; DeepSeek-V2; DeepSeek-V3 and Kimi K2"""


def cases(op: Op, shapes: Shapes) -> list[Case]:
    choices = CHOICES.get(op.name, [])
    tokens = shapes.counts(TOKENS, (1, 4096), (1, 64))
    return [case(op, count, choice) for choice in (choices[-1:] if shapes.quick else choices) for count in tokens]


def case(op: Op, tokens: int, choice: Choice) -> Case:
    experts, k = choice["E"], choice["k"]
    groups = f", {choice['groups']} groups" if "groups" in choice else ""
    return Case(
        op.name,
        f"{tokens}×{experts}, k {k}{groups}",
        f"E {experts}, k {k}",
        short(tokens),
        {"tokens": tokens, "experts": experts, "k": k},
        lambda draw: _values(op, tokens, choice, draw),
        floor="logits",
        alike=f"{experts}, {k}",
    )


def _values(op: Op, tokens: int, choice: Choice, draw: Sets) -> Values:
    """fp32 logits: those of 16 bits often tie, and other libraries then choose otherwise."""
    values: Values = {"logits": draw.normal(tokens, choice["E"], dtype=torch.float32)}
    if op.name in ("biased_grouped_topk", "topk_softplus_sqrt"):
        values["bias"] = draw.normal(choice["E"], dtype=torch.float32, scale=0.1)
    return values | {name: draw.same(value) for name, value in choice.items() if name != "E"}
