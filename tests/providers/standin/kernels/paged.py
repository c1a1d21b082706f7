"""Attention over paged caches: aiter/ops/triton/attention/unified_attention.py."""

from __future__ import annotations

import torch
from torch import Tensor

from . import numbers
from .machine import HALF, Fault, Machine, NotPlayed, Unsupported, check, function, row_strided, shape_of


def _tokens(cache: Tensor, pages: Tensor, shuffled: bool, keys: bool) -> Tensor:
    """fp32 [tokens, heads, size] of a sequence's pages, element by element where they are shuffled:
    keys [heads, size / x, block, x], values [heads, block / x, size, x].
    """
    own = cache[pages].float()
    if not shuffled:
        return own.flatten(0, 1)
    if keys:
        count, heads, runs, block, x = own.shape
        made = torch.empty(count, block, heads, runs * x)
        for d in range(runs * x):
            made[..., d] = own[:, :, d // x, :, d % x].transpose(1, 2)
    else:
        count, heads, runs, size, x = own.shape
        made = torch.empty(count, runs * x, heads, size)
        for t in range(runs * x):
            made[:, t] = own[:, :, t // x, :, t % x]
    return made.flatten(0, 1)


@function
def unified_attention(
    m: Machine,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    seqused_k: Tensor,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    block_table: Tensor,
    softcap: float,
    q_descale: Tensor | None,
    k_descale: Tensor | None,
    v_descale: Tensor | None,
    alibi_slopes: Tensor | None = None,
    output_scale: Tensor | None = None,
    qq_bias: Tensor | None = None,
    sinks: Tensor | None = None,
    q_scales: Tensor | None = None,
    shuffled_kv_cache: bool = False,
    skip_reduce: bool = False,
) -> Tensor:
    """Into out. With max_seqlen_q of 1 sequence b has row b since 0.1.15.post1; scales of caches that are no FP8 are dropped
    before 0.1.12, and since then read where both are given.
    """
    check(Unsupported, causal, "Only causal attention is supported")
    check(NotPlayed, q.element_size() > 1 and q_scales is None and not skip_reduce, "FP8 and FP4 in q are not played")
    check(Unsupported, q.dtype in HALF, f"no instructions for q of {q.dtype}")
    check(Unsupported, k.dtype in (q.dtype, m.fp8) and v.dtype == k.dtype, f"no instructions for caches of {k.dtype}")
    row_strided(Fault, q=q, out=out, block_table=block_table)
    check(Fault, out.dtype in (*HALF, torch.float32, m.fp8), f"out of {out.dtype}")
    check(Fault, seqused_k.is_contiguous() and cu_seqlens_q.is_contiguous(), "tables are read without strides")
    if shuffled_kv_cache:
        check(Fault, k[0].is_contiguous() and v[0].is_contiguous(), "strides within shuffled blocks are not read")
        heads, runs, block, x = k.shape[1:]
        size = runs * x
        check(Fault, size & (size - 1) == 0, "columns beyond the head size are read")
        shape_of(Fault, "v", v, len(v), heads, block // x, size, x)
    else:
        block, heads, size = k.shape[1:]
    check(Fault, block in (16, 32, 64), "a step is a block, of a size that the products take")
    check(NotPlayed, qq_bias is None, "biases between queries are not played")
    if sinks is not None:
        shape_of(Unsupported, "sinks", sinks, q.shape[1])
    scaled = k_descale is not None and v_descale is not None if m.since("0.1.12") else k.element_size() == 1
    if scaled:
        check(Fault, k_descale is not None and v_descale is not None, "scales of FP8 caches are read")
    unit_k, unit_v = (float(k_descale.view(-1)[0]), float(v_descale.view(-1)[0])) if scaled else (1.0, 1.0)
    shortcut = max_seqlen_q == 1 and m.since("0.1.15.post1")
    reach, group = window_size[0], q.shape[1] // heads
    for b in range(len(seqused_k)):
        used = int(seqused_k[b])
        first, last = (b, b + 1) if shortcut else cu_seqlens_q[b : b + 2].tolist()
        check(Fault, last - first <= max_seqlen_q and used <= max_seqlen_k, "a sequence is longer than said")
        if first == last:
            continue
        pages = block_table[b, : -(-used // block)].long()
        check(Fault, not len(pages) or 0 <= int(pages.min()) <= int(pages.max()) < len(k), "a block outside the cache")
        own_k = _tokens(k, pages, shuffled_kv_cache, True)[:used] * unit_k
        own_v = _tokens(v, pages, shuffled_kv_cache, False)[:used] * unit_v
        place = torch.arange(last - first)[:, None] + used - (last - first)
        key = torch.arange(used)[None]
        hidden = (key > place) | ((place - key > reach) if reach >= 0 else False)
        for h in range(q.shape[1]):
            score = q[first:last, h].float() @ own_k[:, h // group].t() * softmax_scale
            score = softcap * torch.tanh(score / softcap) if softcap > 0 else score
            if alibi_slopes is not None:
                score = score + alibi_slopes[h] * (key - (used - (last - first)))
            score = score.masked_fill(hidden, -torch.inf)
            top = score.amax(1, keepdim=True) if used else torch.full((last - first, 1), -torch.inf)
            top = top if sinks is None else torch.maximum(top, sinks[h].float())
            weights = torch.exp(score - top)
            total = weights.sum(1, keepdim=True)
            total = total if sinks is None else total + torch.exp(sinks[h].float() - top)
            values = weights @ own_v[:, h // group] / total
            _store(out[first:last, h], values if used or sinks is not None else torch.zeros_like(values), output_scale)
    return out


def _store(out: Tensor, values: Tensor, scale: Tensor | None) -> None:
    values = values if scale is None else values / scale.view(-1)[0].float()
    if out.element_size() == 1:
        values = values.clamp(-numbers.top(out.dtype), numbers.top(out.dtype))
    out.copy_(values.to(out.dtype))
