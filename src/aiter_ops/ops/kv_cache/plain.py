"""New tokens into a paged cache as they come."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.ops.formulas import FLOATS

from .pages import check_cache_dtype, check_caches, check_scale, check_slots, moved_by_writing, write
from .samples import cache_samples, mla_samples

STORED = Tolerance(ulps=0, fp32=0.0)
"""What is not FP8 is copied. FP8 codes are those of a division; a product with 1/scale moves a few by one."""


def _check(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: str = "nhd",
) -> None:
    check_caches("reshape_and_cache", k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale, layout)


@op(
    "kv_cache",
    samples=cache_samples,
    results=(),
    mutates=("k_cache", "v_cache"),
    tolerance=STORED,
    batch_invariant=True,
    fake=lambda *args: None,
    check=_check,
    moved=lambda k, v, k_cache, v_cache, slots, *rest: (
        moved_by_writing(k, k_cache, slots) + moved_by_writing(v, v_cache, slots)
    ),
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
    """Write keys and values of new tokens into a paged cache (PagedAttention, arXiv:2309.06180).

    k: [T, Hk, D], v: [T, Hk, Dv], bf16, fp16 or fp32, any strides. slot_mapping: [n] int32 or int64, n <= T: token i
    goes to place slot mod block_size of block slot // block_size. A token whose slot is negative, and tokens from n on,
    are not written. layout ``nhd``: k_cache [blocks, block_size, Hk, D], v_cache [blocks, block_size, Hk, Dv];
    ``shuffled``: k_cache [blocks, Hk, D/x, block_size, x], v_cache [blocks, Hk, block_size/x, Dv, x] with x = 16 bytes
    of elements (AITER's layout for its assembly kernels). Caches are of k's dtype, or FP8 of either flavour: the code
    of value / scale, to nearest even, saturated at the format's largest value; NaN stays NaN. k_scale, v_scale: fp32,
    one element or [Hk], for FP8 caches alone; None is 1. All else in the caches stays as it is.
    Two tokens with one slot: either may be the one that is kept, or parts of both. A slot beyond the cache is an error
    of the caller: IndexError in the reference, not looked for by kernels.
    Returns nothing. Raises TypeError for another dtype, ValueError for another shape or a scale that nothing takes.
    """
    write(k, k_cache, slot_mapping, k_scale, layout, key=True)
    write(v, v_cache, slot_mapping, v_scale, layout, key=False)


def _check_mla(kv_c: Tensor, k_pe: Tensor, cache: Tensor, slot_mapping: Tensor, scale: Tensor | None = None) -> None:
    name = "concat_and_cache_mla"
    if kv_c.dtype not in FLOATS:
        raise bad_dtype(name, "kv_c", kv_c.dtype, FLOATS)
    if kv_c.dim() != 2 or kv_c.shape[1] < 1:
        raise bad_shape(name, "kv_c", kv_c, "[T, C]")
    if k_pe.dtype != kv_c.dtype:
        raise bad_dtype(name, "k_pe", k_pe.dtype, (kv_c.dtype,))
    flat = k_pe.dim() == 2 or (k_pe.dim() == 3 and k_pe.shape[1] == 1)
    if not flat or k_pe.shape[0] != kv_c.shape[0] or k_pe.shape[-1] < 1:
        raise bad_shape(name, "k_pe", k_pe, f"[{kv_c.shape[0]}, R] or [{kv_c.shape[0]}, 1, R]")
    width = kv_c.shape[1] + k_pe.shape[-1]
    check_cache_dtype(name, "cache", cache, kv_c)
    if cache.dim() != 3 or cache.shape[1] < 1 or cache.shape[2] != width:
        raise bad_shape(name, "cache", cache, f"[blocks, block_size, {width}]")
    check_slots(name, slot_mapping, kv_c.shape[0])
    check_scale(name, "scale", scale, cache, 1)


@op(
    "kv_cache",
    samples=mla_samples,
    results=(),
    mutates=("cache",),
    tolerance=STORED,
    batch_invariant=True,
    fake=lambda *args: None,
    check=_check_mla,
    moved=lambda kv_c, k_pe, cache, slots, scale: (
        moved_by_writing(kv_c, cache, slots) + moved_by_writing(k_pe, cache, slots)
    ),
)
def concat_and_cache_mla(
    kv_c: Tensor, k_pe: Tensor, cache: Tensor, slot_mapping: Tensor, scale: Tensor | None = None
) -> None:
    """Write compressed keys-and-values and the rotated key of new tokens into MLA's cache (arXiv:2405.04434).

    kv_c: [T, C] (512 in DeepSeek), k_pe: [T, R] or [T, 1, R] (64), bf16, fp16 or fp32, any strides. cache: [blocks,
    block_size, C + R], first kv_c, then k_pe; of kv_c's dtype or FP8. scale: one fp32 element, for both parts.
    As `reshape_and_cache` in slot_mapping, FP8, what stays as it is and errors; returns nothing.
    """
    row = torch.cat((kv_c, k_pe.reshape(k_pe.shape[0], k_pe.shape[-1])), -1)
    write(row.unsqueeze(1), cache.unsqueeze(2), slot_mapping, scale, "nhd", key=True)
