"""AITER's unified_attention in PyTorch: what the stand-in package computes, with the limits it checks."""

from __future__ import annotations

import torch

from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform
from aiter_ops.ops import formulas as f

HALF = (torch.bfloat16, torch.float16)


class PagedKernels:
    """One method a function; parameters by the names that the adapter relies on."""

    def __init__(self, machine: Platform) -> None:
        assert machine.aiter is not None
        self.release, self.machine = version_key(machine.aiter), machine

    def unified_attention(
        self,
        q,
        k,
        v,
        out,
        cu_seqlens_q,
        max_seqlen_q,
        seqused_k,
        max_seqlen_k,
        softmax_scale,
        causal,
        window_size,
        block_table,
        softcap,
        q_descale,
        k_descale,
        v_descale,
        alibi_slopes,
        output_scale,
        qq_bias,
        sinks,
        q_scales=None,
        shuffled_kv_cache=False,
        skip_reduce=False,
    ):
        assert causal, "Only causal attention is supported"
        assert q.dtype in HALF
        assert k.dtype in (q.dtype, self.machine.fp8_dtype)
        assert out.dtype in (*HALF, torch.float32, self.machine.fp8_dtype)
        assert (q_descale, qq_bias, q_scales, skip_reduce) == (None, None, None, False)
        assert q.stride(2) == out.stride(2) == block_table.stride(1) == 1
        shortcut = self.release >= version_key("0.1.15.post1") and max_seqlen_q == 1
        if shuffled_kv_cache:
            assert self.release >= version_key("0.1.15.post1")
            assert k[0].is_contiguous()
            k = k.permute(0, 3, 1, 2, 4).flatten(3)
            v = v.permute(0, 2, 4, 1, 3).flatten(1, 2)
        block, kv_heads, size = k.shape[1:]
        assert block in (16, 32, 64)
        assert not shuffled_kv_cache or size & (size - 1) == 0
        if self.release >= version_key("0.1.12"):
            scaled = k_descale is not None and v_descale is not None
        else:
            scaled = k.element_size() == 1
        k_scale, v_scale = (k_descale, v_descale) if scaled else (1.0, 1.0)
        group = q.shape[1] // kv_heads
        for b, used in enumerate(seqused_k.tolist()):
            first, last = (b, b + 1) if shortcut else cu_seqlens_q[b : b + 2].tolist()
            rows = last - first
            assert rows <= max_seqlen_q
            assert used <= max_seqlen_k
            pages = block_table[b, : -(-used // block)].long()
            at = torch.arange(rows)[:, None] + used - rows
            keys = torch.arange(used)[None, :]
            unseen = keys > at
            if window_size[0] >= 0:
                unseen = unseen | (at - keys > window_size[0])
            for head in range(q.shape[1]):
                own_k, own_v = (
                    f.values_of(t[pages].flatten(0, 1)[:used, head // group]) * s
                    for t, s in ((k, k_scale), (v, v_scale))
                )
                score = q[first:last, head].float() @ own_k.t() * softmax_scale
                if softcap > 0:
                    score = softcap * torch.tanh(score / softcap)
                if alibi_slopes is not None:
                    assert sinks is None
                    score = score + alibi_slopes[head] * (keys - (used - rows))
                score = score.masked_fill(unseen, -torch.inf)
                if sinks is not None:
                    score = torch.cat((score, sinks[head].float().expand(rows, 1)), 1)
                weights = torch.softmax(score, 1)[:, :used] if score.shape[1] else score
                values = weights @ own_v
                if output_scale is not None:
                    values = values / output_scale
                if out.element_size() == 1:
                    values = values.clamp(-f.code_max(out.dtype), f.code_max(out.dtype))
                out[first:last, head] = values.to(out.dtype)
