"""AITER's own Triton kernels for rotary embedding, cache writes and the up-projection of cached latents."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .aiter_triton import aiter
from .aiter_triton_attention import ignoring
from .common import need
from .registry import Call, Kwargs, peer


def halves_of(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, [P, R / 2] each."""
    cos, sin = table.chunk(2, -1)
    return cos, sin


@peer("rotary_embedding", "aiter_triton")
def aiter_rotary(kw: Kwargs) -> Call:
    need(kw.get("offsets") is None and not kw.get("nope_first"), "called without offsets only")
    need(kw["cos_sin_cache"].shape[1] == kw["head_size"], "whole heads only")
    op = aiter("rope.rope", "rope_cached_thd_positions_2c_fwd_inplace")
    q, k = (kw[name].view(len(kw[name]), -1, kw["head_size"]) for name in "qk")
    style = 0 if kw["is_neox"] else 1
    return functools.partial(ignoring, op, q, k, *halves_of(kw["cos_sin_cache"]), kw["positions"], style, True, False)


@peer("rope_and_cache", "aiter_triton")
def aiter_rope_and_cache(kw: Kwargs) -> Call:
    op = aiter("fusions.fused_kv_cache", "fused_qk_rope_reshape_and_cache")
    caches = (kw["k_cache"], kw["v_cache"], kw["slot_mapping"], kw["positions"], *halves_of(kw["cos_sin_cache"]))
    scales, q, k = (kw.get("k_scale"), kw.get("v_scale")), kw["q"], kw["k"]
    named: dict[str, Any] = {"q_out": q, "k_out": k, "output_zeros": False}

    def call() -> None:
        op(q, k, kw["v"], *caches, *scales, kw["is_neox"], True, **named)

    return call


@peer("qk_norm_rope_and_cache", "aiter_triton")
def aiter_norm_rope_and_cache(kw: Kwargs) -> Call:
    """From queries, keys and values side by side, as its kernel takes them."""
    op = aiter("rope.fused_qkv_split_qk_norm_rope_cache", "fused_qkv_split_qk_norm_rope_cache")
    (_, heads, width), kv_heads = kw["q"].shape, kw["k"].shape[1]
    beside = torch.cat((kw["q"], kw["k"], kw["v"]), 1).flatten(1)
    cos, sin = halves_of(kw["cos_sin_cache"])
    weights = (kw["q_weight"], kw["k_weight"], cos, sin, kw["positions"])
    caches = kw["k_cache"], kw["v_cache"]
    named = {"k_scale": kw.get("k_scale"), "v_scale": kw.get("v_scale"), "eps": kw["eps"], "kv_cache_layout": "NHD"}

    def call() -> tuple[torch.Tensor, ...]:
        q, k, _ = op(beside, *weights, *caches, kw["slot_mapping"], heads, kv_heads, width, kw["is_neox"], **named)
        return q, k, *caches

    return call


@peer("concat_and_cache_mla", "aiter_triton")
def aiter_concat_and_cache(kw: Kwargs) -> Call:
    """The cache as pages of one token."""
    op, cache = aiter("kv_cache", "cat_and_cache_mla"), kw["cache"]
    parts = (kw["kv_c"].unsqueeze(1), kw["k_pe"].reshape(len(kw["kv_c"]), 1, -1))
    return functools.partial(
        ignoring, op, *parts, cache.view(-1, 1, cache.shape[-1]), kw["slot_mapping"], kw.get("scale")
    )


@peer("gather_kv_b_proj", "aiter_triton")
def aiter_gather(kw: Kwargs) -> Call:
    need(kw.get("layout", "plain") == "plain", "plain weights only")
    op, buffer = aiter("gather_kv_b_proj", "gather_kv_b_proj"), kw["kv_buffer"]
    scale = kw.get("kv_scale")
    scale = torch.ones(1, dtype=torch.float32, device=buffer.device) if scale is None else scale
    tables = (kw["kv_indptr"], kw["kv_indices"], kw["cu_seqlens"])
    return functools.partial(
        ignoring, op, buffer, scale, *tables, kw["weight"], kw.get("weight_scale"), kw["k"], kw["v"]
    )
