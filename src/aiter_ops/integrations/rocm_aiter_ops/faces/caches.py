"""Rotary embedding, and what writes new tokens to a paged cache."""

from __future__ import annotations

from torch import Tensor

import aiter_ops as ops

from ..table import face, only
from .attention import as_cache, scale_of_codes


@face(
    "rotary_embedding",
    row=12,
    op="rocm_aiter_triton_rotary_embedding",
    mutates=("query", "key"),
    methods=("triton_rotary_embed",),
)
def triton_rotary_embed(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    offsets: Tensor | None = None,
) -> None:
    """query and key in place, as many columns of each head as the cache has."""
    ops.rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox, offsets)


@face("rope_and_cache")
def triton_rope_and_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    key_cache: Tensor,
    value_cache: Tensor,
    layer_slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    flash_layout: bool,
    apply_scale: bool,
) -> None:
    """query and key [T, heads, D] turned in place; key and value to caches [blocks, block_size, Hk, D]."""
    why = "of V the other layout is not the shuffled one"
    only("triton_rope_and_cache", "flash_layout", flash_layout, (True,), why)
    scales = (scale_of_codes(k_scale, key_cache), scale_of_codes(v_scale, value_cache)) if apply_scale else (None, None)
    ops.rope_and_cache(
        positions, query, key, value, cos_sin_cache, is_neox, key_cache, value_cache, layer_slot_mapping, *scales
    )


def _caches(k: Tensor, v: Tensor, shuffled: bool) -> tuple[Tensor, Tensor, str]:
    """vLLM shows shuffled caches in the shape [blocks, block_size, Hk, D]; here they get their own, and the layout."""
    if not shuffled or k.dim() == 5:
        return k, v, "shuffled" if shuffled else "nhd"
    blocks, size, heads, width = k.shape
    x = 16 // k.element_size()
    shapes = (blocks, heads, width // x, size, x), (blocks, heads, size // x, width, x)
    return k.view(shapes[0]), v.view(shapes[1]), "shuffled"


def _split(qkv: Tensor, q_heads: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views [T, heads, D] of a projection [T, (q_heads + 2·kv_heads)·D]."""
    rows = qkv.view(qkv.shape[0], -1, head_dim)
    q, k, v = rows.split((q_heads, kv_heads, kv_heads), 1)
    return q, k, v


def _width(name: str, cos_sin_cache: Tensor, rotary_dim: int, head_dim: int) -> None:
    wanted = rotary_dim or head_dim
    if cos_sin_cache.shape[-1] != wanted:
        raise ValueError(f"{name}: cos_sin_cache has {cos_sin_cache.shape[-1]} columns, rotary_dim asks for {wanted}")


def _sizes(name: str, block_size: int, x: int, k_cache: Tensor) -> None:
    """The two numbers vLLM hands over beside the cache say what its shape says."""
    only(name, "block_size", block_size, (k_cache.shape[3 if k_cache.dim() == 5 else 1],), "the cache's blocks decide")
    only(name, "x", x, (16 // k_cache.element_size(),), "16 bytes of elements stay together")


@face("qk_norm_rope_and_cache")
def fused_qk_norm_rope_and_cache(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_heads_q: int,
    num_heads_k: int,
    num_heads_v: int,
    head_dim: int,
    is_neox: bool,
    rms_norm_eps: float,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    k_out: Tensor | None,
    v_out: Tensor | None,
    return_kv: bool,
    use_shuffle_layout: bool,
    block_size: int,
    x: int,
    rotary_dim: int = 0,
) -> None:
    """q and k heads of qkv normalised and turned; q to q_out, k and v to the caches and, with return_kv, k_out, v_out.

    qkv [T, (Hq + 2·Hk)·D] stays as it is. rotary_dim: columns turned, 0 for all.
    """
    name = "fused_qk_norm_rope_and_cache"
    only(name, "num_heads_v", num_heads_v, (num_heads_k,), "k and v have as many heads")
    _width(name, cos_sin_cache, rotary_dim, head_dim)
    _sizes(name, block_size, x, k_cache)
    if not return_kv and (k_out is not None or v_out is not None):
        raise ValueError(f"{name}: k_out or v_out is given, and return_kv is False")
    q, k, v = _split(qkv, num_heads_q, num_heads_k, head_dim)
    turned, key = q_out.view(q.shape), k.clone() if k_out is None else k_out.view(k.shape)
    turned.copy_(q)
    if k_out is not None:
        key.copy_(k)
    if v_out is not None:
        v_out.view(v.shape).copy_(v)
    keys, values, layout = _caches(k_cache, v_cache, use_shuffle_layout)
    ops.qk_norm_rope_and_cache(
        *(positions, turned, key, v, q_weight, k_weight, rms_norm_eps, cos_sin_cache, is_neox),
        *(keys, values, slot_mapping, scale_of_codes(k_scale, keys), scale_of_codes(v_scale, values), layout),
    )


@face("qk_norm_rope_and_cache")
def do_qk_norm_rope_kvcache_update(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_heads_q: int,
    num_heads_k: int,
    head_dim: int,
    is_neox: bool,
    rms_norm_eps: float,
    q_out: Tensor,
    k_out: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    kv_cache_dtype: str,
    use_shuffle_layout: bool,
    return_kv: bool = True,
) -> None:
    """`fused_qk_norm_rope_and_cache` with the rotary width of the cache of cosines.

    return_kv: k_out gets the keys as they were before the cache coded them; else it stays as it is.
    """
    name = "do_qk_norm_rope_kvcache_update"
    keys, values = (as_cache(name, cache, kv_cache_dtype) for cache in (key_cache, value_cache))
    fused_qk_norm_rope_and_cache(
        *(qkv, q_weight, k_weight, cos_sin_cache, positions, num_heads_q, num_heads_k, num_heads_k, head_dim),
        *(is_neox, rms_norm_eps, q_out, keys, values, slot_mapping, k_scale, v_scale),
        *(k_out if return_kv else None, None, return_kv),
        *(use_shuffle_layout, keys.shape[3 if keys.dim() == 5 else 1], 16 // keys.element_size()),
        rotary_dim=cos_sin_cache.shape[-1],
    )


@face("rms_norm", "mrope", "reshape_and_cache")
def fused_qk_norm_mrope_and_cache(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_heads_q: int,
    num_heads_k: int,
    head_dim: int,
    is_neox: bool,
    mrope_section: list[int],
    is_interleaved: bool,
    rms_norm_eps: float,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    block_size: int,
    x: int,
    rotary_dim: int = 0,
) -> None:
    """As `fused_qk_norm_rope_and_cache` with three positions a token [3, T]; three ops, each of which rounds.

    The caches are [blocks, block_size, Hk, D], as vLLM hands them over (use_shuffle_layout False).
    """
    name = "fused_qk_norm_mrope_and_cache"
    _width(name, cos_sin_cache, rotary_dim, head_dim)
    _sizes(name, block_size, x, k_cache)
    q, k, v = _split(qkv, num_heads_q, num_heads_k, head_dim)
    turned, key = q_out.view(q.shape), ops.rms_norm(k, k_weight, rms_norm_eps)
    turned.copy_(ops.rms_norm(q, q_weight, rms_norm_eps))
    ops.mrope(positions, turned, key, head_dim, cos_sin_cache, list(mrope_section), is_neox, is_interleaved)
    keys, values, layout = _caches(k_cache, v_cache, False)
    ops.reshape_and_cache(
        key, v, keys, values, slot_mapping, scale_of_codes(k_scale, keys), scale_of_codes(v_scale, values), layout
    )


@face("rms_norm", "mrope", "reshape_and_cache")
def do_qk_norm_mrope_kvcache_update(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_heads_q: int,
    num_heads_k: int,
    head_dim: int,
    is_neox: bool,
    mrope_section: list[int],
    is_interleaved: bool,
    rms_norm_eps: float,
    q_out: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    kv_cache_dtype: str,
    rotary_dim: int = 0,
) -> None:
    """`fused_qk_norm_mrope_and_cache` with caches as kv_cache_dtype says."""
    name = "do_qk_norm_mrope_kvcache_update"
    keys, values = (as_cache(name, cache, kv_cache_dtype) for cache in (key_cache, value_cache))
    fused_qk_norm_mrope_and_cache(
        *(qkv, q_weight, k_weight, cos_sin_cache, positions, num_heads_q, num_heads_k, head_dim, is_neox),
        *(mrope_section, is_interleaved, rms_norm_eps, q_out, keys, values, slot_mapping, k_scale, v_scale),
        *(keys.shape[1], 16 // keys.element_size(), rotary_dim),
    )
