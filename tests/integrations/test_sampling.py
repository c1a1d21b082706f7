"""Sampling in `generate` by the op: the law of the drawn tokens, seeds, and where it is left to transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.integrations.transformers import kernelize, restore

pytest.importorskip("transformers")

from .architectures import build

IDS = torch.tensor([[5, 9, 33, 12]])
WARPED: dict[str, Any] = {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02}


def sampled(model: Any, count: int = 1, steps: int = 1, **more: Any) -> tuple[Tensor, set[str]]:
    """Tokens [count, steps], and the ops that were called."""
    named = {"do_sample": True, "max_new_tokens": steps, "num_return_sequences": count, **WARPED, **more}
    with aiter_ops.record() as calls:
        out = model.generate(IDS, attention_mask=torch.ones_like(IDS), **named)
    return out[:, IDS.shape[1] :], {call.op for call in calls}


def wanted(model: Any) -> Tensor:
    """The law of the first token: softmax at the temperature, then top k, top p and min p, each of what is left."""
    with torch.no_grad():
        p = (model(IDS).logits[0, -1].double() / WARPED["temperature"]).softmax(-1)
    p = torch.where(p >= p.topk(WARPED["top_k"]).values[-1], p, 0)
    order = p.argsort(descending=True)
    before = p[order].cumsum(0) - p[order]
    p = p.scatter(0, order, torch.where(before < WARPED["top_p"] * p.sum(), p[order], 0))
    p = torch.where(p >= WARPED["min_p"] * p.max(), p, 0)
    return p / p.sum()


@pytest.mark.parametrize("how", ["ours", "another temperature"])
def test_the_law(how: str) -> None:
    """Pearson's statistic of 4000 tokens: its mean is the degrees of freedom f, its deviation sqrt(2 f)."""
    model, count = build("Llama"), 4000
    p = wanted(model)
    kernelize(model)
    torch.manual_seed(1)
    tokens, ops = sampled(model, count, **({"temperature": 1.0} if how != "ours" else {}))
    assert "sample" in ops
    seen = torch.bincount(tokens[:, 0], minlength=len(p)).double()
    inside = p > 0
    statistic = float(((seen - count * p)[inside].square() / (count * p[inside])).sum())
    freedom = int(inside.sum()) - 1
    assert freedom >= 5
    within = not bool(seen[~inside].any()) and statistic < freedom + 6 * (2 * freedom) ** 0.5
    assert within == (how == "ours")


def test_seeds_and_one_candidate() -> None:
    model = build("Llama")
    greedy = model.generate(IDS, max_new_tokens=12, do_sample=False)[:, IDS.shape[1] :]
    kernelize(model)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(sampled(model, 2, 12)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert torch.equal(sampled(model, 1, 12, top_k=1)[0], greedy)
    restore(model)
    assert "sample" not in sampled(model)[1]


def test_what_is_left_to_transformers() -> None:
    model = build("Llama")
    kernelize(model)
    for more in ({"num_beams": 2}, {"typical_p": 0.5}, {"output_scores": True, "return_dict_in_generate": False}):
        assert "sample" not in sampled(model, **more)[1], more
    assert "sample" in sampled(model, repetition_penalty=1.3)[1]
    helper = build("Llama")
    named = {"do_sample": True, "max_new_tokens": 3, "assistant_model": helper}
    with aiter_ops.record() as calls:
        model.generate(IDS, attention_mask=torch.ones_like(IDS), **named)
    assert "sample" not in {call.op for call in calls}
    assert "sample" in sampled(model)[1]
