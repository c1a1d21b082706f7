"""Attention over packed sequences in fp32, a sequence at a time: what the references of the family are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .formula import attend


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    scale: float,
    causal: bool,
    window: Sequence[int],
    softcap: float,
    alibi: Tensor | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`formula.attend` of every sequence b, with queries cu_seqlens_q[b] to cu_seqlens_q[b + 1] and keys alike.

    Returns out [Tq, H, Dv] and lse [H, Tq], fp32; rows of no sequence give zeros and -inf. Reads the lengths, so it
    synchronises.
    """
    queries, heads, _ = q.shape
    out = torch.zeros(queries, heads, v.shape[2], dtype=torch.float32, device=q.device)
    lse = torch.full((heads, queries), -torch.inf, dtype=torch.float32, device=q.device)
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b in range(len(starts_q) - 1):
        rows, keys = slice(starts_q[b], starts_q[b + 1]), slice(starts_k[b], starts_k[b + 1])
        slopes = alibi[b] if alibi is not None and alibi.dim() == 2 else alibi
        terms = {"causal": causal, "window": window, "softcap": softcap, "alibi": slopes, "sinks": sinks}
        out[rows], lse[:, rows] = attend(q[rows], k[keys], v[keys], scale, **terms)
    return out, lse


def rows_of_sequences(tokens: int, cu_seqlens: Tensor) -> Tensor:
    """bool [tokens]: which rows belong to a sequence; those past the last end are padding."""
    return torch.arange(tokens, device=cu_seqlens.device) < cu_seqlens[-1]
