"""AITER's attention over packed sequences in PyTorch: what the stand-in package computes, and what it drops.

As aiter/ops/mha.py does, it picks by dtype, head sizes and features among an assembly without windows, soft cap and
sinks, and Composable Kernel; rows of no sequence are not written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform

UNWRITTEN = 7.0
"""What rows hold that no kernel writes."""


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    causal: bool,
    window: tuple[int, int],
    cap: float,
    slopes: Tensor | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """out [Lq, H, Dv] and lse [H, Lq] of one sequence, fp32, by einsum over all pairs."""
    group = q.shape[1] // k.shape[1]
    k, v = k.float().repeat_interleave(group, 1), v.float().repeat_interleave(group, 1)
    score = torch.einsum("ihd,jhd->hij", q.float(), k) * scale
    if cap > 0:
        score = cap * torch.tanh(score / cap)
    apart = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))[None]
    if slopes is not None:
        score = score - slopes[:, None, None] * apart.abs()
    hidden = torch.zeros_like(apart, dtype=torch.bool)
    for reach, side in ((window[0], apart), (0 if causal else window[1], -apart)):
        if reach >= 0:
            hidden |= side > reach
    score = score.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        score = torch.cat((score, sinks[:, None, None].expand(-1, len(q), 1)), -1)
    lse = score.logsumexp(-1) if score.shape[-1] else torch.full(score.shape[:2], -torch.inf)
    weights = torch.nan_to_num(torch.exp(score - lse[..., None]))[..., : len(k)]
    return torch.einsum("hij,jhd->ihd", weights, v), lse


class AttentionKernels:
    """One method a function; parameters by the names that the adapters rely on."""

    def __init__(self, machine: Platform) -> None:
        assert machine.aiter is not None
        self.release, self.machine = version_key(machine.aiter), machine

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, given: dict[str, Any], to_v3: bool) -> Tensor:
        left, right, *sink_tokens = given["window_size"]
        assert sink_tokens == ([0] if self.release >= (0, 1, 8) else [])
        for most, ends in (("max_seqlen_q", "cu_seqlens_q"), ("max_seqlen_k", "cu_seqlens_k")):
            assert given[most] >= max(1, int(given[ends].diff().max()))
        longest = given["max_seqlen_k"]
        left, right = (-1 if end >= longest else end for end in (left, right))
        window, slopes, sinks = (left, right), given.get("alibi_slopes"), given.get("sink_ptr")
        cap = given["logits_soft_cap"]
        if to_v3:
            window, sinks, cap = (-1, -1), None, 0.0
        lse = torch.full((q.shape[1], q.shape[0]), UNWRITTEN)
        ends_q, ends_k = given["cu_seqlens_q"], given["cu_seqlens_k"]
        assert ends_q.is_contiguous()
        assert ends_k.is_contiguous()
        for b in range(len(ends_q) - 1):
            rows, keys = slice(*ends_q[b : b + 2].tolist()), slice(*ends_k[b : b + 2].tolist())
            mine = slopes[b] if slopes is not None and slopes.dim() == 2 else slopes
            terms = (given["softmax_scale"], given["causal"], window, cap, mine, sinks)
            out[rows], lse[:, rows] = dense(q[rows], k[keys], v[keys], *terms)
        return torch.where(torch.diff(ends_k).amax() == 0, torch.inf, lse)

    def flash_attn_varlen_func(self, q, k, v, **given):
        sizes = q.shape[2], v.shape[2]
        assert q.dtype in (torch.bfloat16, torch.float16)
        assert max(sizes) <= 256
        assert all(size % 8 == 0 for size in sizes)
        assert given["dropout_p"] == 0.0
        assert given["bias"] is given["block_table"] is None
        assert given["alibi_slopes"] is None or given["alibi_slopes"].dtype == torch.float32
        sinks = given.get("sink_ptr")
        assert sinks is None or sinks.dtype == torch.float32
        capped = given["logits_soft_cap"] > 0 and self.release >= (0, 1, 8)
        windowed = max(given["window_size"][:2]) > 0
        to_v3 = q.dtype == torch.bfloat16 and sizes in ((128, 128), (192, 128))
        to_v3 = to_v3 and not (windowed or capped) and given["alibi_slopes"] is None
        out = given["out"]
        if out is None:
            out = torch.full((*q.shape[:2], sizes[1]), UNWRITTEN, dtype=q.dtype)
        assert out.is_contiguous()
        lse = self._attend(q, k, v, out, given, to_v3)
        return (out, lse) if given["return_lse"] else out

    def flash_attn_varlen_fp8_pertensor_func(self, q, k, v, q_descale, k_descale, v_descale, **given):
        assert q.dtype == k.dtype == v.dtype == self.machine.fp8_dtype
        assert (q.shape[2], v.shape[2]) == (128, 128)
        assert q.shape[1] // k.shape[1] in (1, 2, 4, 8, 16)
        batch, shared = len(given["cu_seqlens_q"]) - 1, k.shape[1]
        values = []
        for codes, scale, ends in (
            (q, q_descale, given["cu_seqlens_q"]),
            (k, k_descale, given["cu_seqlens_k"]),
            (v, v_descale, given["cu_seqlens_k"]),
        ):
            assert scale.shape == (1,) or (scale.shape == (batch, shared) and self.release >= (0, 1, 12))
            assert scale.is_contiguous()
            rows = torch.bucketize(torch.arange(len(codes)), ends[1:], right=True).clamp(max=batch - 1)
            each = scale.expand(batch, shared)[rows].repeat_interleave(codes.shape[1] // shared, 1)
            values.append(codes.float() * each[..., None])
        out = torch.full((*q.shape[:2], 128), UNWRITTEN, dtype=torch.bfloat16)
        self._attend(*values, out, given, True)
        return out
