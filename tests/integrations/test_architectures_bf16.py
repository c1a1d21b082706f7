"""Every architecture that `kernelize` is held to, small and random, beside stock transformers in bf16.

Both round, in other places. What is allowed follows from E, the differences of the stock model's logits in bf16 from its
own in fp32 on the same tokens: with ours no less exact, ours and the stock's are at most 2·E apart (see `compare`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from aiter_ops.integrations.transformers import kernelize, restore

transformers = pytest.importorskip("transformers")

from .architectures import EXPERTS, KINDS, altered, batch, build, called, continued, decoding_op  # noqa: E402

TEXTS, LENGTH, STEPS = 8, 128, 48
PERPLEXITY = 0.005


class Seen(NamedTuple):
    """texts: logits fp32 [TEXTS, LENGTH, V] of one pass. steps: those of a padded batch with a growing cache, where they
    are of a token. greedy: tokens that follow that batch [B, STEPS]."""

    texts: Tensor
    steps: Tensor
    greedy: Tensor


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_model_in_bf16(kind: str) -> None:
    """Logits of texts in one pass, and with padding token by token: the largest difference and the mean one are within
    the bound (the largest of a few padded tokens not where experts are chosen: one choice is as much as any). Perplexity
    is within 0.5 %, or as near as bf16 leaves the stock model. Where greedy tokens part, the stock model's two best
    logits are nearer than the bound."""
    exact, stock, ours, tops, texts = _all(kind)
    bound = 2 * float((stock.texts - exact.texts).abs().max())
    for name in ("texts", "steps"):
        off, lost = ((getattr(a, name) - getattr(b, name)).abs() for a, b in ((ours, stock), (stock, exact)))
        assert float(off.mean()) <= 2 * float(lost.mean())
        if name == "texts" or kind not in EXPERTS:
            assert float(off.max()) <= 2 * float(lost.max())
    gone = _loss(stock.texts, texts) - _loss(exact.texts, texts)
    apart = _loss(ours.texts, texts) - _loss(stock.texts, texts)
    assert abs(apart) <= max(math.log1p(PERPLEXITY), abs(gone)), (apart, gone)
    for row, gap in _parting(stock.greedy, ours.greedy, tops):
        assert gap <= bound, row


def test_a_wrong_op_is_found_in_bf16() -> None:
    """With another rotation Qwen3 is beyond each bound."""
    with altered("apply_rope", is_neox=False):
        exact, stock, ours, tops, texts = _all("Qwen3")
    bound = 2 * float((stock.texts - exact.texts).abs().max())
    assert float((ours.texts - stock.texts).abs().max()) > bound
    assert abs(_loss(ours.texts, texts) - _loss(stock.texts, texts)) > math.log1p(PERPLEXITY)
    assert any(gap > bound for _, gap in _parting(stock.greedy, ours.greedy, tops))


def _all(kind: str) -> tuple[Seen, Seen, Seen, Callable[[int, int], float], Tensor]:
    """The stock model in fp32, in bf16, and ours in bf16; how far its two best logits are apart at step `at` of a row;
    and the texts, which are drawn from the stock model, so that their perplexity is that of its own words."""
    model = build(kind)
    prompt = torch.randint(3, 96, (TEXTS, 1), generator=torch.Generator().manual_seed(7))
    torch.manual_seed(0)
    drawing = {"max_new_tokens": LENGTH - 1, "do_sample": True, "top_k": 0}
    texts = model.generate(prompt, attention_mask=torch.ones_like(prompt), **drawing)
    exact = _seen(model, texts)
    model.bfloat16()
    stock = _seen(model, texts)
    report = kernelize(model)
    assert not report.left
    ours, calls = called(lambda: _seen(model, texts))
    assert calls[decoding_op(kind)] == 2 * (STEPS - 1 + 3)
    restore(model)
    ids, mask = batch()

    def tops(row: int, at: int) -> float:
        before = torch.cat((ids[row][mask[row].bool()], stock.greedy[row, :at]))
        best = _forced(model, before[None])[0, -1].topk(2).values
        return float(best[0] - best[1])

    return exact, stock, ours, tops, texts


def _seen(model: Any, texts: Tensor) -> Seen:
    ids, mask = batch()
    return Seen(_forced(model, texts), _stepped(model, ids, mask), continued(model, ids, STEPS, mask))


@torch.no_grad()
def _forced(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return logits


@torch.no_grad()
def _stepped(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """A pass over all but three tokens and the three, one by one."""
    cache, parts, start = transformers.DynamicCache(config=model.config), [], 0
    for stop in (ids.shape[1] - 3, ids.shape[1] - 2, ids.shape[1] - 1, ids.shape[1]):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, start:stop]
        out = model(
            input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=positions, past_key_values=cache
        )
        parts.append(out.logits.float())
        start = stop
    return torch.cat(parts, 1)[mask.bool()]


def _loss(logits: Tensor, ids: Tensor) -> float:
    """The logarithm of perplexity."""
    scores = logits[:, :-1].double().log_softmax(-1)
    return -float(scores.gather(2, ids[:, 1:, None]).mean())


def _parting(stock: Tensor, ours: Tensor, tops: Callable[[int, int], float]) -> list[tuple[int, float]]:
    """Rows that part, and the gap there."""
    first = {
        row: int((a != b).nonzero()[0]) for row, (a, b) in enumerate(zip(stock, ours, strict=True)) if (a != b).any()
    }
    return [(row, tops(row, at)) for row, at in first.items()]
