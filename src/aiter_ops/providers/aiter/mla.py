"""MLA by AITER: aiter/mla.py, mla_decode_fwd, and aiter/ops/triton/gather_kv_b_proj.py.

What mla_decode_fwd has no assembly for ends the process or raises from C++ ("cannot get heuristic kernel"), so only
what every release since has in hsa/gfx942/mla and hsa/gfx950/mla is served: one row a sequence, 16 or 128 heads (others
are padded with zeros), bf16, or FP8 queries and cache, split evenly over the keys. Its persistent kernels take a
schedule of their own (get_mla_metadata_v1), six tensors, which `plan` is not.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops import formulas as f
from aiter_ops.ops.mla.expand import BLOCK, scale_kind

from . import PROVIDER, limits
from .call import entry, needs, since

MLA = "VLLM_ROCM_USE_AITER_MLA"
DECODE = "mla_decode_fwd"
FP8_FROM = "0.1.7"
LSE_FROM = "0.1.13"
"""Releases before take return_lse and leave it unwritten."""

WIDTHS = (576, 512)
HEADS = (16, 128)
FLAT_FROM = "0.1.21"
"""The first release that may read page numbers by token, without the sequences' bounds, where a page is one token."""


def _refusal(platform: Platform, with_lse: bool) -> Predicate:
    fp8_served = since(platform, FP8_FROM) and not with_lse

    def refuse(
        q: Tensor,
        kv_buffer: Tensor,
        out: Tensor,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        kv_last_page_lens: Tensor,
        max_q: int,
        scale: float,
        page_size: int,
        logit_cap: float,
        q_scale: Tensor | None,
        kv_scale: Tensor | None,
        causal: bool,
        plan: Tensor | None,
    ) -> str | None:
        if logit_cap:
            return "AITER's mla_decode_fwd has no logit_cap"
        if plan is not None:
            return "AITER's mla_decode_fwd takes its own metadata, not a plan"
        if page_size != 1 or max_q != 1:
            return "AITER's mla_decode_fwd is served for page_size 1 and one row a sequence"
        if q.shape[0] != qo_indptr.shape[0] - 1:
            return "AITER's mla_decode_fwd is served for one row a sequence, in every sequence"
        if (q.shape[2], out.shape[2]) != WIDTHS:
            return "AITER's mla_decode_fwd takes rows of 576 columns and values of 512"
        most = HEADS[0] if with_lse else HEADS[-1]
        if q.shape[1] > most:
            return f"AITER's mla_decode_fwd {'gives lse for' if with_lse else 'takes'} heads <= {most}"
        if q.dtype in f.FP8:
            if not fp8_served:
                return "AITER's mla_decode_fwd takes FP8 since 0.1.7, and gives no lse for it"
            if kv_buffer.dtype != q.dtype:
                return "AITER's mla_decode_fwd takes FP8 in q and kv_buffer alike"
            reason = limits.takes_fp8(q.dtype, platform)
            if reason:
                return reason
        elif (q.dtype, kv_buffer.dtype) != (torch.bfloat16, torch.bfloat16):
            return "AITER's mla_decode_fwd takes bfloat16, or FP8 in q and kv_buffer alike"
        if out.dtype != torch.bfloat16:
            return limits.writes(out.dtype, (torch.bfloat16,), DECODE)
        row = kv_buffer.stride(0) == kv_buffer.shape[-1] and kv_buffer.stride(-1) == 1
        return None if row else "AITER's mla_decode_fwd needs a cache of stride 576 between rows"

    return refuse


def _unit(scale: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones(1, dtype=torch.float32, device=like.device) if scale is None else scale.reshape(1)


def _decode(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    scale: float,
    q_scale: Tensor | None,
    kv_scale: Tensor | None,
    with_lse: bool,
) -> Tensor | None:
    """Writes `out`; lse [T, heads it computed] or None. Keywords after the tensors: 0.1.10.post3 put others before."""
    heads = q.shape[1]
    padded = next(n for n in HEADS if heads <= n)
    whole = q if padded == heads else _padded(q, padded)
    direct = padded == heads and out.is_contiguous()
    o = out if direct else out.new_empty((out.shape[0], padded, out.shape[2]))
    named: dict[str, object] = {"sm_scale": scale}
    if q.dtype in f.FP8:
        named.update(q_scale=_unit(q_scale, q), kv_scale=_unit(kv_scale, q))
    if with_lse:
        named["return_lse"] = True
    result = entry(DECODE)(
        whole.contiguous(),
        kv_buffer.reshape(-1, 1, 1, kv_buffer.shape[-1]),
        o,
        qo_indptr.contiguous(),
        kv_indptr.contiguous(),
        kv_indices.contiguous(),
        kv_last_page_lens.contiguous(),
        max_seqlen_q=1,
        **named,
    )
    # it divides by zero, or writes nothing, where a sequence has no keys; a row of no sequence is not to be written
    tokens = out.shape[0]
    without = (qo_indptr.diff() > 0) & (kv_indptr.diff() == 0)
    empty = torch.zeros(tokens + 1, dtype=torch.bool, device=out.device)
    empty.scatter_(0, torch.where(without, qo_indptr[:-1], tokens).long(), True)
    fresh = o[:, :heads].masked_fill_(empty[:tokens, None, None], 0)
    if not direct:
        mine = torch.arange(tokens, device=out.device) < qo_indptr[-1]
        out.copy_(torch.where(mine[:, None, None], fresh, out))
    return result[1] if with_lse else None


def _padded(q: Tensor, heads: int) -> Tensor:
    """q with heads of zeros behind its own; FP8 by its bytes, of which 0 is zero in both flavours."""
    codes = q.dtype in f.FP8
    more = F.pad(q.view(torch.uint8) if codes else q, (0, 0, 0, heads - q.shape[1]))
    return more.view(q.dtype) if codes else more


@PROVIDER.implements(
    "mla_decode", requires=needs("0.1.5", "mla_decode_fwd"), refuses=lambda p: _refusal(p, False), flag=MLA
)
def mla_decode(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int = 1,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    causal: bool = True,
    plan: Tensor | None = None,
) -> None:
    """AITER aiter/mla.py, mla_decode_fwd, 0.1.5-0.1.20. With one row a sequence `causal` makes no difference."""
    tables = (qo_indptr, kv_indptr, kv_indices, kv_last_page_lens)
    _decode(q, kv_buffer, out, *tables, scale, q_scale, kv_scale, False)


@PROVIDER.implements(
    "mla_decode_lse", requires=needs(LSE_FROM, "mla_decode_fwd"), refuses=lambda p: _refusal(p, True), flag=MLA
)
def mla_decode_lse(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int = 1,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    causal: bool = True,
    plan: Tensor | None = None,
) -> Tensor:
    """AITER aiter/mla.py, mla_decode_fwd with return_lse, 0.1.13-0.1.20; [T, 16], written for bf16 and 16 heads in any
    number of splits, for others not where there is one split.
    """
    tables = (qo_indptr, kv_indptr, kv_indices, kv_last_page_lens)
    lse = _decode(q, kv_buffer, out, *tables, scale, q_scale, kv_scale, True)
    assert lse is not None
    mine = torch.arange(q.shape[0], device=q.device) < qo_indptr[-1]
    return torch.where(mine, lse[:, : q.shape[1]].t(), -torch.inf).contiguous()


def _expand_refusal(platform: Platform) -> Predicate:
    flat = since(platform, FLAT_FROM)

    def refuse(
        kv_buffer: Tensor,
        weight: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        kv_scale: Tensor | None,
        weight_scale: Tensor | None,
        layout: str,
    ) -> str | None:
        name = "AITER's gather_kv_b_proj"
        coded = kv_buffer.dtype in f.FP8
        chunk = 32 if coded else 16
        nope, rope = weight.shape[0] // k.shape[1] - v.shape[2], kv_buffer.shape[-1] - weight.shape[1]
        if kv_buffer.dtype != torch.bfloat16 and not coded:
            return f"{name} takes a cache of bfloat16 or FP8"
        if weight.dtype not in ((kv_buffer.dtype,) if coded else (torch.bfloat16, *f.FP8)):
            return f"{name} casts the weight to {kv_buffer.dtype}, the cache's type"
        if k.dtype != torch.bfloat16:
            return limits.writes(k.dtype, (torch.bfloat16,), "gather_kv_b_proj")
        if weight.shape[1] != 512 or rope < 16 or rope & (rope - 1):
            return f"{name} takes latents of 512 columns, and powers of two for rope"
        if layout != "plain" and (nope % 16 or v.shape[2] % 16):
            return f"{name} takes shuffled heads of a multiple of 16 rows"
        if weight_scale is not None and scale_kind(weight, weight_scale) == "block" and weight.shape[0] % BLOCK:
            return f"{name} takes blocks of whole 128 rows, so rows that are a multiple of 128"
        if chunk % kv_buffer.shape[1] or (flat and kv_buffer.shape[1] == 1):
            return f"{name} takes pages that divide {chunk} tokens{', and more than one' if flat else ''}"
        if not (kv_buffer.is_contiguous() and k.is_contiguous() and v.is_contiguous()):
            return f"{name} takes no stride in kv_buffer, k and v"
        found = next((t.dtype for t in (kv_buffer, weight) if t.dtype in f.FP8), None)
        return limits.takes_fp8(found, platform) if found else None

    return refuse


@PROVIDER.implements(
    "gather_kv_b_proj", requires=needs("0.1.16", "gather_kv_b_proj"), refuses=_expand_refusal, flag=MLA
)
def gather_kv_b_proj(
    kv_buffer: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
) -> None:
    """AITER aiter/ops/triton/gather_kv_b_proj.py, 0.1.16-0.1.20: since 0.1.16 also for heads of no power of two, and
    (0.1.14) weights without a scale.
    """
    if k.shape[0] == 0:
        return
    entry("gather_kv_b_proj")(
        kv_buffer.reshape(kv_buffer.shape[0], kv_buffer.shape[1], -1),
        _unit(kv_scale, kv_buffer),
        kv_indptr.contiguous(),
        kv_indices.contiguous(),
        cu_seqlens.contiguous(),
        weight.contiguous(),
        None if weight_scale is None else weight_scale.contiguous(),
        k,
        v,
        weight_preshuffle=layout != "plain",
    )
