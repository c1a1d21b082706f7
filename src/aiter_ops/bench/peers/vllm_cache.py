"""vLLM's rotary embedding, cache writes and merge: ``torch.ops._C`` and ``torch.ops._C_cache_ops``."""

from __future__ import annotations

from typing import Any

import torch

from .common import filling, in_turn, need
from .registry import Call, Kwargs, peer
from .vllm import vllm


def of_caches(name: str) -> Any:
    return getattr(torch.ops._C_cache_ops, name).default


def held(cache: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A cache as its ops take it: what it holds, FP8 as bytes."""
    return ("fp8", cache.view(torch.uint8)) if cache.dtype.itemsize == 1 else ("auto", cache)


def factor(scale: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, dtype=torch.float32, device=like.device) if scale is None else scale


def rotate(kw: Kwargs) -> Call:
    q, k, head_size = kw["q"], kw["k"], kw.get("head_size") or kw["q"].shape[-1]
    need(kw.get("offsets") is None and not kw.get("nope_first"), "called without offsets only")
    rows = len(q)
    args = (kw["positions"], q.view(rows, -1), k.view(rows, -1), head_size, kw["cos_sin_cache"], kw["is_neox"])
    return filling(None, vllm("rotary_embedding"), *args)


def write(kw: Kwargs, k: torch.Tensor) -> Call:
    need(kw.get("layout", "nhd") == "nhd", "plain caches only")
    (kind, keys), (_, values) = held(kw["k_cache"]), held(kw["v_cache"])
    scales = (factor(kw.get(name), k) for name in ("k_scale", "v_scale"))
    return filling(
        None, of_caches("reshape_and_cache_flash"), k, kw["v"], keys, values, kw["slot_mapping"], kind, *scales
    )


@peer("rotary_embedding", "vllm")
def vllm_rotary(kw: Kwargs) -> Call:
    return rotate(kw)


@peer("reshape_and_cache", "vllm_main")
def vllm_reshape_and_cache(kw: Kwargs) -> Call:
    return write(kw, kw["k"])


@peer("concat_and_cache_mla", "vllm_main")
def vllm_concat_and_cache(kw: Kwargs) -> Call:
    kind, cache = held(kw["cache"])
    scale = factor(kw.get("scale"), kw["kv_c"])
    args = (kw["kv_c"], kw["k_pe"], cache, kw["slot_mapping"], kind, scale)
    return filling(None, of_caches("concat_and_cache_mla"), *args)


@peer("rope_and_cache", "vllm.two")
def vllm_rope_then_cache(kw: Kwargs) -> Call:
    return in_turn(None, rotate(kw), write(kw, kw["k"]))


@peer("qk_norm_rope_and_cache", "vllm.two")
def vllm_norm_rope_then_cache(kw: Kwargs) -> Call:
    """On queries, keys and values side by side, as its kernel takes them: a private copy."""
    tokens, heads, width = kw["q"].shape
    kv_heads = kw["k"].shape[1]
    beside = torch.cat((kw["q"], kw["k"], kw["v"]), 1)
    q, k, v = beside.split((heads, kv_heads, kv_heads), 1)
    sizes = (heads, kv_heads, kv_heads, width, kw["eps"])
    weights = (kw["q_weight"], kw["k_weight"], kw["cos_sin_cache"], kw["is_neox"], kw["positions"])
    fused = filling(None, vllm("fused_qk_norm_rope"), beside.view(tokens, -1), *sizes, *weights)
    return in_turn((q, k, kw["k_cache"], kw["v_cache"]), fused, write({**kw, "v": v}, k))


@peer("merge_attn_states", "vllm_main")
def vllm_merge(kw: Kwargs) -> Call:
    out, lse = torch.empty_like(kw["out_a"]), torch.empty_like(kw["lse_a"])
    op = torch.ops._C.merge_attn_states.default
    return filling((out, lse), op, out, lse, kw["out_a"], kw["lse_a"], kw["out_b"], kw["lse_b"], None, None)
