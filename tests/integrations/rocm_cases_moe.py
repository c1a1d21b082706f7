"""Cases of routing and experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aiter_ops.ops.layout import shuffled

from .rocm_numbers import D64, FN, Case, X, near, normal

# --- routing and experts ----------------------------------------------------------------------------------------------

LOGITS = normal(7, 16)


def buffers(k: int = 3) -> tuple[Tensor, Tensor]:
    return torch.full((7, k), -9.0), torch.full((7, k), -9, dtype=torch.int32)


def chosen(scores: Tensor, weights: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """ids of the k largest scores of a row, and their weights."""
    ids = scores.argsort(-1, descending=True)[:, :k]
    return weights.gather(-1, ids), ids


def routed(want: tuple[Tensor, Tensor]) -> Callable[..., None]:
    def check(weights: Tensor, ids: Tensor, *numbers: Tensor) -> None:
        assert ids.dtype == torch.int32
        assert torch.equal(ids.long(), want[1])
        near(weights, want[0])
        for n in numbers:
            assert n.tolist() == [[j * 7 + t for j in range(3)] for t in range(7)]

    return check


def softmax() -> Case:
    p = torch.softmax(LOGITS.to(D64), -1)
    weights, ids = chosen(p, p)
    want = weights / weights.sum(-1, keepdim=True), ids
    numbers = torch.zeros(7, 3, dtype=torch.int32)
    return Case((*buffers(), numbers, LOGITS, True), routed(want))


def gating() -> Case:
    p = torch.softmax(LOGITS.to(D64), -1)
    return Case((*buffers(), torch.zeros(7, 3, dtype=torch.int32), LOGITS, False), routed(chosen(p, p)))


def sigmoid() -> Case:
    s = torch.sigmoid(LOGITS.to(D64))
    return Case((*buffers(), LOGITS), routed(chosen(s, s)))


def kept(scores: Tensor, rank: Tensor, groups: int) -> Tensor:
    """scores [T, E], -inf outside of the `groups` groups of four that rank [T, 4] puts first."""
    best = rank.argsort(-1, descending=True)[:, :groups]
    mask = torch.zeros_like(rank, dtype=torch.bool).scatter(1, best, True).repeat_interleave(4, 1)
    return torch.where(mask, scores, -torch.inf)


def biased() -> Case:
    bias = normal(16, seed=9)
    s = torch.sigmoid(LOGITS.to(D64))
    c = s + bias.to(D64)
    weights, ids = chosen(kept(c, c.view(7, 4, 4).topk(2, -1).values.sum(-1), 2), s)
    return Case((LOGITS, bias, *buffers(), 4, 2, False, 2.5), routed((weights * 2.5, ids)))


def grouped() -> Case:
    s = torch.sigmoid(LOGITS.to(D64))
    weights, ids = chosen(kept(s, s.view(7, 4, 4).amax(-1), 2), s)
    want = weights / weights.sum(-1, keepdim=True) * 2.5, ids
    return Case((LOGITS, *buffers(), 4, 2, True, "sigmoid", 2.5), routed(want))


def fused_topk() -> Case:
    p = torch.softmax(LOGITS.to(D64), -1)
    return Case((X.new_zeros(7, 8), LOGITS, 3, False), routed(chosen(p, p)))


def experts(on_input: bool, mask: Tensor | None, quant: bool) -> tuple[tuple[Tensor, ...], tuple[Any, ...], Tensor]:
    """(x, w1, w2, weights, ids), scales, and Σ p·W2·(silu(gate)·up) over the experts that are here."""
    x, w1, w2 = normal(7, 64), normal(3, 128, 64, seed=1, scale=0.2), normal(3, 64, 64, seed=2, scale=0.2)
    weights = torch.rand(7, 2, generator=torch.Generator().manual_seed(3))
    ids = torch.stack((torch.arange(7) % 4, (torch.arange(7) + 2) % 4), 1).to(torch.int32)
    scales: tuple[Any, ...] = (None, None)
    v1, v2 = w1.to(D64), w2.to(D64)
    if quant:
        scales = tuple(w.abs().amax(-1, keepdim=True) / 448 for w in (w1, w2))
        w1, w2 = ((w / s).to(FN) for w, s in zip((w1, w2), scales, strict=True))
        v1, v2 = (w.to(D64) * s.to(D64) for w, s in zip((w1, w2), scales, strict=True))
    local = list(range(4)) if mask is None else [int(mask[:e].sum()) if mask[e] else -1 for e in range(4)]
    out = torch.zeros(7, 64, dtype=D64)
    for t in range(7):
        for p, e in zip(weights[t].to(D64), (local[i] for i in ids[t].tolist()), strict=True):
            if 0 <= e < 3:
                gate, up = (v1[e] @ x[t].to(D64) * (p if on_input else 1)).chunk(2)
                out[t] += (v2[e] @ (gate * torch.sigmoid(gate) * up)) * (1 if on_input else p)
    w1, w2 = shuffled(w1, "shuffled_16x16"), shuffled(w2, "shuffled_16x16")
    return (x, w1, w2, weights, ids), scales, out


def moe() -> Case:
    # fp32 weights have no shuffled order of 16 bytes that is an op's; bf16 has
    mask = torch.tensor([1, 0, 1, 1], dtype=torch.int32)
    (x, w1, w2, weights, ids), scales, want = experts(False, mask, True)
    args = (x, w1, w2, weights, ids, mask, 0, 2, False, *scales)
    return Case(args, lambda y: near(y, want, 0.06))


def moe_on_input() -> Case:
    args, scales, want = experts(True, None, True)
    return Case((*args, *scales), lambda y: near(y, want, 0.06))
