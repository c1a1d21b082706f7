"""Attention over paged caches by AITER: its Triton kernel, aiter/ops/triton/attention/unified_attention.py.

AITER's assembly kernel for the shuffled layout (aiter/ops/attention.py, pa_fwd_asm) is not used: it takes one row of q
for every sequence, which lengths on the device alone can tell, and nothing says what it gives without keys. Nor is there
an entry that returns the LSE.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from aiter_ops.core import platforms
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.attention.paged_checks import cache_sizes
from aiter_ops.ops.formulas import FP8

from .. import PROVIDER, limits
from ..call import entry, lacks, needs, since

FIRST = "0.1.7"
SCALES_FROM = "0.1.12"
"""Scales of the caches hold for any dtype; before, for FP8 alone."""

SHORTCUT_FROM = "0.1.15.post1"
"""With max_seqlen_q of 1 the b-th sequence is taken to have the b-th row."""

LEAST_BLOCK = 16
MOST_BLOCK = 64
"""Without gathering, a step of the kernel is a block."""


def _one(scale: Tensor | None, name: str) -> str | None:
    if scale is None or scale.numel() == 1:
        return None
    return f"AITER takes one {name} for all sequences and heads"


def _sizes(q: Tensor, k_cache: Tensor, layout: str) -> str | None:
    _, block, _, size = cache_sizes(k_cache, layout)
    if reason := limits.power_of_two(block, "block_size"):
        return reason
    if not LEAST_BLOCK <= block <= MOST_BLOCK:
        return f"AITER's kernel takes {LEAST_BLOCK} <= block_size <= {MOST_BLOCK}; it is {block}"
    if layout == "shuffled":
        return limits.power_of_two(size, "the head size of shuffled caches")
    return None


def _unified(platform: Platform) -> Predicate:
    scales = since(platform, SCALES_FROM)
    unshuffled = lacks(platform, "unified_attention", "shuffled_kv_cache")

    def dtypes(q: Tensor, k_cache: Tensor, out: Tensor) -> str | None:
        if q.dtype in FP8:
            return "AITER rounds the weights of the values to FP8 where q is FP8"
        reason = limits.half(q, name="q")
        if reason is None and k_cache.dtype in FP8:
            reason = limits.takes_fp8(k_cache.dtype, platform)
        return limits.fp8(out.dtype, platform) if reason is None and out.dtype in FP8 else reason

    def strides(k_cache: Tensor, v_cache: Tensor, out: Tensor, layout: str) -> str | None:
        if out.stride(2) != 1:
            return f"AITER writes heads with stride 1 between elements; it is {out.stride(2)}"
        whole = all(t[0, 0].is_contiguous() for t in (k_cache, v_cache) if len(t))
        return None if layout == "nhd" or whole else "AITER reads shuffled blocks with the strides of contiguous ones"

    def refuse(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        out: Tensor,
        cu_seqlens_q: Tensor,
        seqused_k: Tensor,
        block_table: Tensor,
        max_q: int,
        max_k: int,
        scale: float,
        causal: bool,
        window: list[int],
        softcap: float,
        alibi: Tensor | None,
        sinks: Tensor | None,
        q_descale: Tensor | None,
        k_descale: Tensor | None,
        v_descale: Tensor | None,
        out_scale: Tensor | None,
        layout: str,
        plan: Tensor | None,
    ) -> str | None:
        if not causal:
            return "AITER's unified_attention is causal"
        if layout == "shuffled" and unshuffled:
            return unshuffled
        if alibi is not None and sinks is not None:
            return "AITER's ALiBi is shifted by a number for each row, which sinks do not follow"
        given = k_descale is not None or v_descale is not None
        if given and not scales and k_cache.dtype not in FP8:
            return f"AITER's unified_attention drops scales of 16-bit caches before {SCALES_FROM}"
        return (
            dtypes(q, k_cache, out)
            or _one(k_descale, "k_descale")
            or _one(v_descale, "v_descale")
            or _sizes(q, k_cache, layout)
            or strides(k_cache, v_cache, out, layout)
        )

    return refuse


def before_keys(rows: int, cu_seqlens_q: Tensor, seqused_k: Tensor) -> Tensor:
    """bool [rows]: the rows of a sequence with fewer keys than rows that stand before its first key and see none.

    Rows after the last sequence are none of these. Nothing synchronises.
    """
    ends = cu_seqlens_q[1:].contiguous()
    row = torch.arange(rows, dtype=ends.dtype, device=ends.device)
    sequence = torch.searchsorted(ends, row, right=True)
    own = sequence.clamp(max=len(ends) - 1)
    return (sequence < len(ends)) & (ends[own] - row > seqused_k[own])


@PROVIDER.implements(
    "paged_attention",
    requires=needs(FIRST, "unified_attention"),
    refuses=_unified,
    flag="VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION",
)
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool = True,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    softcap: float = 0.0,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    out_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
    plan: Tensor | None = None,
) -> None:
    """AITER unified_attention, 0.1.7-0.1.20 (q_scales put before alibi_slopes in 0.1.15.post1). A causal window has no right
    side. Scales are read where both are given, or always for FP8 caches of older releases: the missing one is 1.

    The kernel reads the whole of a sequence's last block, so what lies there past its keys must be finite. Rows before
    the first key come out as NaN and are mended.
    """
    if not q.numel() or not len(seqused_k):
        return
    release = platforms.platform()
    if k_cache.dtype in FP8 or k_descale is not None or v_descale is not None:
        one = torch.ones(1, dtype=torch.float32, device=q.device) if k_descale is None or v_descale is None else None
        k_descale, v_descale = (one if t is None else t.reshape(1) for t in (k_descale, v_descale))
    more: dict[str, Any] = {"shuffled_kv_cache": True} if layout == "shuffled" else {}
    entry("unified_attention")(
        q if q.stride(2) == 1 else q.contiguous(),
        k_cache,
        v_cache,
        out,
        cu_seqlens_q=cu_seqlens_q.contiguous(),
        # one row for every sequence is more than max_q of 1 says: there may be sequences without rows
        max_seqlen_q=max(max_q, 2) if since(release, SHORTCUT_FROM) else max_q,
        seqused_k=seqused_k.contiguous(),
        max_seqlen_k=max_k,
        softmax_scale=scale,
        causal=True,
        window_size=(window[0], 0) if window[0] >= 0 else (-1, -1),
        block_table=block_table if block_table.stride(1) == 1 else block_table.contiguous(),
        softcap=softcap,
        q_descale=None,
        k_descale=k_descale,
        v_descale=v_descale,
        alibi_slopes=None if alibi is None else alibi.float().contiguous(),
        output_scale=None if out_scale is None else out_scale.reshape(1),
        sinks=None if sinks is None else sinks.contiguous(),
        **more,
    )
    if max_q > 1:  # a single row without a key comes out as zeros
        raw = out.view(torch.uint8) if out.dtype in FP8 else out
        raw.masked_fill_(before_keys(out.shape[0], cu_seqlens_q, seqused_k)[:, None, None], 0)
