"""Paged caches by AITER: aiter/ops/cache.py (csrc/kernels/cache_kernels.cu) and its fused Triton kernel.

FP8 caches are refused: the conversion of newer releases (csrc/include/opus/opus.hpp, ``cvt_pk_fp8_f32``) does not cut
values beyond the largest code. ``fused_qk_norm_rope_cache_pts_quant_shuffle`` is not called: it reads its scales on the
host (csrc/kernels/fused_qk_norm_rope_cache_quant.cu), and angles in the dtype of q; so qk_norm_rope_and_cache has no
adapter.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.kv_cache.pages import run_of

from . import PROVIDER, limits
from .call import entry, needs
from .rope import exact_products, extent, neighbours

AUTO = "auto"
"""AITER's kv_cache_dtype where the cache has the dtype of what is written."""


def _own(cache: Tensor, x: Tensor) -> str | None:
    if cache.dtype == x.dtype:
        return None
    return "AITER's conversion to FP8 does not cut values at the largest code"


def _any_scale(slots: Tensor) -> Tensor:
    """A float that AITER's kernels read and, with a cache that is not FP8, do not use: any four bytes."""
    return slots.contiguous().view(torch.float32)


def _dense_rows(*tensors: Tensor) -> str | None:
    """Heads of a token one after the other; tokens may be apart."""
    for x in tensors:
        if x.stride(2) != 1 or (x.shape[1] > 1 and x.stride(1) != x.shape[2]):
            return "AITER's kernel reads heads of a token without gaps; a stride of k or v leaves some"
    return None


def _dense_blocks(*caches: Tensor) -> str | None:
    for cache in caches:
        if not cache[:1].is_contiguous():
            return "AITER's kernel takes blocks of a cache without gaps; a stride of it leaves some"
    return None


def _caches(platform: Platform) -> Predicate:
    def refuse(
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slot_mapping: Tensor,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
        layout: str,
    ) -> str | None:
        if v.shape[2] != k.shape[2]:
            return f"AITER's kernel takes values as wide as keys; they are {v.shape[2]} and {k.shape[2]} wide"
        if k_cache.stride(0) != v_cache.stride(0):
            return "AITER's kernel takes one stride between blocks of both caches"
        if layout == "shuffled" and not (k_cache.is_contiguous() and v_cache.is_contiguous()):
            return "AITER's kernel takes shuffled caches without gaps; a stride of one leaves some"
        return _own(k_cache, k) or _dense_rows(k, v) or _dense_blocks(k_cache, v_cache)

    return refuse


@PROVIDER.implements(
    "reshape_and_cache", requires=needs("0.1.5", "reshape_and_cache_flash", "reshape_and_cache"), refuses=_caches
)
def reshape_and_cache(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
) -> None:
    """AITER aiter/ops/cache.py, reshape_and_cache_flash (nhd) and reshape_and_cache with asm_layout (shuffled),
    0.1.5-0.1.20. It starts a program for every row of k, so padding is cut off here; slots are 64 bits wide in most
    releases.
    """
    count = slot_mapping.shape[0]
    if count == 0:
        return
    tensors = k[:count], v[:count], k_cache, v_cache, slot_mapping.long()
    if layout == "nhd":
        scale = _any_scale(tensors[-1])
        entry("reshape_and_cache_flash")(*tensors, kv_cache_dtype=AUTO, k_scale=scale, v_scale=scale)
    else:
        entry("reshape_and_cache")(*tensors, kv_cache_dtype=AUTO, k_scale=None, v_scale=None, asm_layout=True)


def _latents(platform: Platform) -> Predicate:
    def refuse(kv_c: Tensor, k_pe: Tensor, cache: Tensor, slot_mapping: Tensor, scale: Tensor | None) -> str | None:
        (width, rotary), run = (kv_c.shape[1], k_pe.shape[-1]), run_of(kv_c)
        rows = kv_c.stride(0), k_pe.stride(0), cache.stride(0), cache.stride(1)
        aligned = all(step % run == 0 for step in rows) and not (kv_c.data_ptr() | k_pe.data_ptr()) % 16
        if not aligned or cache.data_ptr() % 16:
            return "AITER's kernel reads and writes rows in words of 16 bytes: one is not aligned"
        return (
            _own(cache, kv_c)
            or limits.half(kv_c, name="kv_c")
            or limits.multiple(width, 8, "a width of kv_c")
            or limits.multiple(rotary, 8, "a width of k_pe")
            or limits.at_most(rotary, min(width, 1024), "a width of k_pe")
            or neighbours(kv_c, k_pe, cache, slot_mapping)
        )

    return refuse


@PROVIDER.implements("concat_and_cache_mla", requires=needs("0.1.6.post1", "concat_and_cache_mla"), refuses=_latents)
def concat_and_cache_mla(
    kv_c: Tensor, k_pe: Tensor, cache: Tensor, slot_mapping: Tensor, scale: Tensor | None = None
) -> None:
    """AITER aiter/ops/cache.py, concat_and_cache_mla, 0.1.6.post1-0.1.20; k_pe has two dimensions there."""
    if slot_mapping.shape[0] == 0:
        return
    slots = slot_mapping.long()
    rotary = k_pe.squeeze(1) if k_pe.dim() == 3 else k_pe
    entry("concat_and_cache_mla")(kv_c, rotary, cache, slots, kv_cache_dtype=AUTO, scale=_any_scale(slots))


def _fused(platform: Platform) -> Predicate:
    def refuse(
        positions: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos_sin_cache: Tensor,
        is_neox: bool,
        k_cache: Tensor,
        v_cache: Tensor,
        slot_mapping: Tensor,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
        layout: str,
    ) -> str | None:
        width = k.shape[2]
        if k_cache.dtype != torch.bfloat16 or k.dtype != torch.bfloat16:
            return (
                "AITER's fused_qk_rope_reshape_and_cache takes bfloat16; to FP8 it does not convert k as it is rounded"
            )
        if layout != "nhd":
            return "AITER's fused_qk_rope_reshape_and_cache writes values in another layout in most releases"
        if cos_sin_cache.shape[1] != width or v.shape[2] != width:
            return "AITER's fused_qk_rope_reshape_and_cache turns whole heads, with values as wide"
        if q.shape[1] % k.shape[1]:
            return f"AITER's kernel takes heads of q that are a multiple of those of k: {q.shape[1]}, {k.shape[1]}"
        if slot_mapping.shape[0] != k.shape[0]:
            return "AITER's fused_qk_rope_reshape_and_cache takes a slot for every token"
        return (
            exact_products(q, cos_sin_cache)
            or limits.power_of_two(width, "the head size")
            or limits.power_of_two(k_cache.shape[1], "the block size")
            or neighbours(positions, q, k, v, slot_mapping)
            or limits.within_31_bits(max(extent(t) for t in (q, k, v, cos_sin_cache)))
        )

    return refuse


@PROVIDER.implements("rope_and_cache", requires=needs("0.1.6.post2", "fused_qk_rope_reshape_and_cache"), refuses=_fused)
def rope_and_cache(
    positions: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
) -> None:
    """AITER aiter/ops/triton/fusions/fused_kv_cache.py (before 0.1.10 aiter/ops/triton/fused_kv_cache.py),
    fused_qk_rope_reshape_and_cache, 0.1.6.post2-0.1.20. What it does with tokens without a slot is in known_bad.kv_cache.
    """
    cos, sin = cos_sin_cache.chunk(2, -1)
    entry("fused_qk_rope_reshape_and_cache")(
        *(q, k, v, k_cache, v_cache, slot_mapping, positions, cos, sin),
        k_scale=None,
        v_scale=None,
        is_neox=is_neox,
        flash_layout=True,
        apply_scale=False,
        q_out=q,
        k_out=k,
        output_zeros=False,
    )
