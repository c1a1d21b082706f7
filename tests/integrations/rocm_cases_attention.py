"""Cases of attention and rotary embedding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .rocm_numbers import D64, FN, Case, near, normal

# --- attention and rotary embedding -----------------------------------------------------------------------------------


def mla_inputs() -> tuple[Any, ...]:
    ends = torch.tensor([0, 2, 3], dtype=torch.int32)
    pages = torch.tensor([0, 5, 9], dtype=torch.int32)
    indices = torch.tensor([3, 9, 0, 7, 5, 1, 2, 11, 4], dtype=torch.int32)
    last = torch.ones(2, dtype=torch.int32)
    return normal(3, 2, 24), normal(12, 24, seed=4), torch.zeros(3, 2, 16), ends, 2, pages, indices, last


def mla_formula(q: Tensor, kv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """out [T, H, 16] and lse [T, H], scale 0.3, causal."""
    _, ends, _, pages, indices, _ = rest
    out, lse = torch.zeros(3, 2, 16, dtype=D64), torch.zeros(3, 2, dtype=D64)
    for b in range(2):
        keys = kv.to(D64)[indices[int(pages[b]) : int(pages[b + 1])].long()]
        count = int(ends[b + 1] - ends[b])
        for i in range(count):
            t, seen = int(ends[b]) + i, keys[: len(keys) - (count - 1 - i)]
            for h in range(2):
                scores = 0.3 * (seen @ q[t, h].to(D64))
                lse[t, h] = torch.logsumexp(scores, 0)
                out[t, h] = torch.softmax(scores, 0) @ seen[:, :16]
    return out, lse


def mla() -> Case:
    args = mla_inputs()
    return Case((*args, 0.3), lambda o: near(o, mla_formula(*args)[0]))


def mla_lse() -> Case:
    args = mla_inputs()

    def check(lse: Tensor, o: Tensor) -> None:
        want, sums = mla_formula(*args)
        near(o, want)
        near(lse, sums)

    return Case((*args, 0.3), check)


def gathered() -> Case:
    latents, weight = normal(6, 1, 12), normal(2 * (5 + 3), 8, seed=2)
    k, v = torch.zeros(4, 2, 9), torch.zeros(4, 2, 3)
    ends = torch.tensor([0, 3, 4], dtype=torch.int32)
    indices = torch.tensor([5, 0, 2, 3], dtype=torch.int32)
    rows = latents.to(D64)[indices.long(), 0]
    both = (rows[:, :8] @ weight.to(D64).t()).view(4, 2, 8)
    want_k = torch.cat((both[..., :5], rows[:, None, 8:].expand(4, 2, 4)), -1)

    def check(k: Tensor, v: Tensor) -> None:
        near(k, want_k)
        near(v, both[..., 5:])

    return Case((latents, torch.ones(1), ends, indices, ends, weight, k, v), check)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """fp64 [L, H, D] of one sequence, each query over all keys."""
    scores = torch.einsum("qhd,khd->hqk", q.to(D64), k.to(D64)) * scale
    return torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), v.to(D64))


def fp8_attention() -> Case:
    q, k, v = (normal(2, 6, 2, 16, seed=s, scale=2, dtype=FN) for s in (1, 2, 3))
    scales = tuple(torch.tensor([s]) for s in (0.5, 0.7, 1.5))
    want = torch.stack([attention(*(t[b] for t in (q, k, v)), 0.35 / math.sqrt(16)) * 1.5 for b in range(2)])
    return Case((q, k, v, *scales, 2, torch.float32), lambda y: near(y, want, 2.0**-6))


def rotary() -> Case:
    positions, cache = torch.tensor([4, 0, 9]), normal(12, 8)
    q, k = normal(3, 4 * 16), normal(3, 2 * 16, seed=2)

    def turned(x: Tensor) -> Tensor:
        rows = x.to(D64).view(3, -1, 16).clone()
        cos, sin = (half[:, None] for half in cache[positions].to(D64).chunk(2, -1))
        a, b = rows[..., :4].clone(), rows[..., 4:8].clone()
        rows[..., :4], rows[..., 4:8] = a * cos - b * sin, b * cos + a * sin
        return rows.view(x.shape)

    wanted = turned(q), turned(k)

    def check(q: Tensor, k: Tensor) -> None:
        near(q, wanted[0])
        near(k, wanted[1])

    return Case((positions, q, k, 16, cache, True), check)
