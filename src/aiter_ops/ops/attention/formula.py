"""Attention by definition, in fp32: what every reference of the families attention and mla is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_SCORES = 2**26
"""So many scores are held at once; queries beyond are done in turn."""


def visible(queries: Tensor, keys: int, causal: bool, window: Sequence[int]) -> Tensor:
    """bool [len(queries), keys]: which keys a query at each of these positions sees.

    Position p sees keys p - left to p + right, where `window` is (left, right) and -1 has no end; `causal` ends at p.
    """
    left, right = window
    at, key = queries[:, None], torch.arange(keys, device=queries.device)[None, :]
    seen = key >= 0 if left < 0 else key >= at - left
    if causal:
        right = 0 if right < 0 else min(right, 0)
    return (seen if right < 0 else seen & (key <= at + right)).expand(len(queries), keys)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    *,
    causal: bool,
    window: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(score) · v of one sequence (arXiv:1706.03762), with score = scale · q·k for the keys a query sees.

    q [Tq, H, D], k [Tk, Hk, D], v [Tk, Hk, Dv] of any dtype, taken as fp32; head h reads key head h // (H / Hk). Query
    i stands at position i + Tk - Tq: the last query is aligned with the last key. See `visible` for causal, window.
    softcap c > 0: c · tanh(score / c) in its place (arXiv:2408.00118). alibi [H]: minus slope · |position - key| is
    added after that (arXiv:2108.12409). sinks [H]: one more score in the denominator, with no value (gpt-oss).
    Returns out [Tq, H, Dv] fp32 and lse [H, Tq] fp32, the natural logarithm of the denominator, sink included. A query
    that sees no key gives zeros, and lse -inf or its sink.
    """
    (queries, heads, _), keys, group = q.shape, k.shape[0], q.shape[1] // max(k.shape[1], 1)
    at = torch.arange(queries, device=q.device) + (keys - queries)
    kf = k.float().transpose(0, 1).repeat_interleave(group, 0).contiguous()
    vf = v.float().transpose(0, 1).repeat_interleave(group, 0).contiguous()
    qf = q.float().transpose(0, 1).contiguous()
    out = torch.zeros(queries, heads, v.shape[2], dtype=torch.float32, device=q.device)
    lse = torch.full((heads, queries), -torch.inf, dtype=torch.float32, device=q.device)
    step = max(1, MOST_SCORES // max(heads * keys, 1))
    for first in range(0, queries, step):
        part = slice(first, first + step)
        score = (qf[:, part] @ kf.transpose(1, 2)) * scale
        if softcap > 0:
            score = softcap * torch.tanh(score / softcap)
        if alibi is not None:
            distance = (at[part, None] - torch.arange(keys, device=q.device)[None, :]).abs()
            score = score - alibi.float()[:, None, None] * distance
        score = torch.where(visible(at[part], keys, causal, window), score, -torch.inf)
        if sinks is not None:
            sink = sinks.float()[:, None, None].expand(heads, score.shape[1], 1)
            score = torch.cat((score, sink), -1)
        if not score.shape[-1]:
            continue
        total = torch.logsumexp(score, -1)
        weights = torch.where(total[..., None] == -torch.inf, 0.0, torch.exp(score - total[..., None]))
        lse[:, part] = total
        out[part] = (weights[..., :keys] @ vf).transpose(0, 1)
    return out, lse
