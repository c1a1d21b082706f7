"""aiter/mla.py, and aiter/ops/triton/gather_kv_b_proj.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import orders
from .machine import Abort, Fault, Machine, NotPlayed, Unsupported, check, dense, function, garbage, shape_of

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


@function
def mla_decode_fwd(
    m: Machine,
    q: Tensor,
    kv_buffer: Tensor,
    o: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_seqlen_q: int,
    sm_scale: float | None = None,
    logit_cap: float = 0.0,
    num_kv_splits: int | None = None,
    page_size: int = 1,
    nhead_kv: int = 1,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    return_lse: bool = False,
    causal: bool = True,
    cp_world_size: int = 1,
    work_meta_data: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """The split kernels, then the one that merges them: a sequence without keys is 0 / 0. Into o.

    Where a release takes scales, FP8 without them is read with whatever a null pointer gives: a fault.
    """
    check(Unsupported, logit_cap <= 0, "logit_cap is not support yet")
    check(Unsupported, kv_buffer.dim() == 4, "not enough values to unpack (expected 4)")
    check(NotPlayed, work_meta_data is None and cp_world_size == 1, "schedules and shards are not played")
    heads, width = q.shape[1:]
    dense(Fault, q=q, kv_buffer=kv_buffer, o=o, qo_indptr=qo_indptr, kv_indptr=kv_indptr, kv_indices=kv_indices)
    tables = (qo_indptr, kv_indptr, kv_indices, kv_last_page_lens)
    check(Fault, all(t.dtype == torch.int32 for t in tables), "tables are read as int32")
    shape_of(Fault, "kv_buffer", kv_buffer, len(kv_buffer), page_size, nhead_kv, width)
    shape_of(Fault, "o", o, len(q), heads, 512)
    check(Fault, o.dtype == torch.bfloat16, "o is written as bf16")
    coded = q.dtype in FP8
    known = (q.dtype == torch.bfloat16 or (q.dtype == m.fp8 and m.since("0.1.7"))) and q.dtype == kv_buffer.dtype
    check(Abort, known and heads in (16, 128) and width == 576, "cannot get heuristic kernel!")
    scale = width**-0.5 if sm_scale is None else sm_scale
    values = 1.0
    if coded:
        check(Fault, q_scale is not None and kv_scale is not None, "q_scale and kv_scale are read")
        check(Fault, q_scale.dtype == kv_scale.dtype == torch.float32, "scales are read as fp32")
        values = float(kv_scale.view(-1)[0])
        scale = scale * float(q_scale.view(-1)[0]) * values
    lse = garbage(len(q), heads, dtype=torch.float32)
    for b in range(len(qo_indptr) - 1):
        rows = range(int(qo_indptr[b]), int(qo_indptr[b + 1]))
        check(Fault, len(rows) <= max_seqlen_q, "more rows than max_seqlen_q")
        keys = _keys(kv_buffer, kv_indptr, kv_indices, kv_last_page_lens, b, page_size)
        for i, row in enumerate(rows):
            seen = keys[: max(len(keys) - (len(rows) - 1 - i), 0)] if causal else keys
            score = q[row].float() @ seen.t() * scale
            total = torch.logsumexp(score, -1, keepdim=True)
            o[row] = (torch.exp(score - total) @ seen[:, :512] * values).to(o.dtype)
            if not len(seen):
                o[row] = torch.nan
            lse[row] = total[:, 0]
    there = return_lse and m.since("0.1.13") and heads == 16 and not coded
    unwritten = garbage(len(q), heads, dtype=torch.float32)
    return garbage(len(q), 1, heads, 512, dtype=torch.float32), (lse if there else unwritten) if return_lse else None


def _keys(buffer: Tensor, indptr: Tensor, indices: Tensor, last: Tensor, b: int, page: int) -> Tensor:
    """fp32 [tokens, 576] of sequence b; of its last page as many as `last` says."""
    pages = indices[int(indptr[b]) : int(indptr[b + 1])].long()
    check(Fault, not len(pages) or 0 <= int(pages.min()) <= int(pages.max()) < len(buffer), "a page outside the cache")
    tokens = buffer[pages].flatten(0, 2).float()
    check(Fault, not len(pages) or 1 <= int(last[b]) <= page, "the length of a last page")
    return tokens[: len(tokens) - (page - int(last[b]))] if len(pages) else tokens


@function
def gather_kv_b_proj(
    m: Machine,
    k_buffer: Tensor,
    k_scale: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_prefix_sum_context_lens: Tensor,
    kv_proj_weight: Tensor,
    kv_proj_scale: Tensor | None,
    k_prefix: Tensor,
    v_prefix: Tensor,
    weight_preshuffle: bool,
    shuffled_kv_cache: bool = False,
) -> None:
    """k_prefix: projected keys with the rotary part behind, v_prefix: values. The weight is cast to the cache's type; in
    steps of 16 tokens, 32 of FP8. Strides are not read.
    """
    check(NotPlayed, not shuffled_kv_cache, "shuffled caches are not played")
    (rows, latent), (_, block, width) = kv_proj_weight.shape, k_buffer.shape
    (tokens, heads, deep), (_, _, value) = k_prefix.shape, v_prefix.shape
    nope, rotary = rows // heads - value, width - latent
    check(Unsupported, v_prefix.shape[:2] == k_prefix.shape[:2], "k_prefix and v_prefix")
    check(Unsupported, latent == 512 and rotary & (rotary - 1) == 0, "arange's range must be a power of 2")
    check(Unsupported, deep == nope + rotary, "the width of k_prefix")
    step = 16 if k_buffer.dtype in (torch.bfloat16, torch.float16) else 32
    check(Unsupported, step % block == 0, "ChunkK % block_size == 0")
    dense(Fault, k_buffer=k_buffer, weight=kv_proj_weight, k_prefix=k_prefix, v_prefix=v_prefix)
    weight = kv_proj_weight
    if weight_preshuffle:
        check(Fault, nope % 16 == value % 16 == 0, "a head begins inside a tile")
        weight = orders.read(weight, orders.weight_places(rows, latent, 16 // weight.element_size()))
    weight = weight.to(k_buffer.dtype).float()
    if kv_proj_scale is not None:
        dense(Fault, kv_proj_scale=kv_proj_scale)
        if kv_proj_scale.dim() == 1 or kv_proj_scale.shape[1] == 1:
            shape_of(Unsupported, "kv_proj_scale", kv_proj_scale.flatten(), rows)
            weight = weight * kv_proj_scale.view(-1, 1)
        else:
            blocks = kv_proj_scale.shape
            check(Unsupported, rows // blocks[0] == latent // blocks[1] == 128, "blocks of 128 x 128")
            weight = weight * kv_proj_scale[torch.arange(rows)[:, None] // 128, torch.arange(latent)[None] // 128]
    unit = 1.0 if k_buffer.dtype == torch.bfloat16 else k_scale.view(-1)[0]
    by_head = weight.view(heads, nope + value, latent)
    for b in range(len(kv_indptr) - 1):
        first, last = kv_prefix_sum_context_lens[b : b + 2].tolist()
        pages = kv_indices[int(kv_indptr[b]) : int(kv_indptr[b + 1])].long()
        cached = k_buffer[pages].flatten(0, 1)[: last - first].float() * unit
        check(Fault, len(cached) == last - first <= tokens, "tokens without a page")
        both = torch.einsum("tl,hol->tho", cached[:, :latent], by_head)
        k_prefix[first:last, :, :nope] = both[..., :nope].to(k_prefix.dtype)
        k_prefix[first:last, :, nope:] = cached[:, None, latent:].to(k_prefix.dtype)
        v_prefix[first:last] = both[..., nope:].to(v_prefix.dtype)
