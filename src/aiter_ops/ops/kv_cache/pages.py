"""Where a paged cache holds a token, and the writing of new ones: what references are made of, and their checks.

A cache has blocks (pages) of block_size slots; slot s is place s mod block_size of block s // block_size. Layouts:

nhd       k and v [blocks, block_size, Hk, D]
shuffled  k [blocks, Hk, D/x, block_size, x], v [blocks, Hk, block_size/x, D, x] with x = 16 bytes of elements, the
          layout of AITER's assembly kernels (``asm_layout``, github.com/ROCm/aiter, csrc/kernels/cache_kernels.cu)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.ops import formulas as f
from aiter_ops.ops.rope.rotation import INTEGERS

Layout = Literal["nhd", "shuffled"]
SCALED_RULE = "None with a cache that is not FP8"


def run_of(cache: Tensor) -> int:
    """x: neighbours that stay together in the shuffled layout."""
    return 16 // cache.element_size()


def coded(rows: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """rows [n, heads, D] as a cache of `dtype` holds them; scale: one element or one a head, None for 1."""
    if dtype not in f.FP8:
        return rows
    one = scale is None or scale.numel() == 1
    factor = rows.new_ones((), dtype=torch.float32) if scale is None else scale.reshape(() if one else (-1, 1))
    return f.encode(rows.float(), factor, dtype)


def _bytes(t: Tensor) -> Tensor:
    """FP8 as bytes: torch does not index FP8 everywhere."""
    return t.view(torch.uint8) if t.dtype in f.FP8 else t


def write(rows: Tensor, cache: Tensor, slots: Tensor, scale: Tensor | None, layout: str, key: bool) -> None:
    """Write rows [T, Hk, D] into `cache` at `slots` [n], n <= T; where a slot is negative nothing is written."""
    kept = slots >= 0
    slot = slots[kept].long()
    values = _bytes(coded(rows[: len(slots)][kept], scale, cache.dtype))
    size = cache.shape[1] if layout == "nhd" else cache.shape[3] if key else cache.shape[2] * cache.shape[4]
    block, place, held = slot // size, slot % size, _bytes(cache)
    if layout == "nhd":
        held[block, place] = values
    elif key:
        held[block, :, :, place] = values.unflatten(-1, (-1, cache.shape[4]))
    else:
        x = cache.shape[4]
        held[block, :, place // x, :, place % x] = values


def check_slots(op: str, slots: Tensor, tokens: int) -> None:
    """`slots` is [n] of integers, n <= tokens."""
    if slots.dtype not in INTEGERS:
        raise bad_dtype(op, "slot_mapping", slots.dtype, INTEGERS)
    if slots.dim() != 1 or slots.shape[0] > tokens:
        raise bad_shape(op, "slot_mapping", slots, f"[n] with n <= {tokens}, the number of tokens")


def check_scale(op: str, name: str, scale: Tensor | None, cache: Tensor, heads: int) -> None:
    """`scale` is fp32, one element or one a head, with an FP8 cache only."""
    if scale is None:
        return
    if cache.dtype not in f.FP8:
        raise bad_value(op, name, scale, SCALED_RULE)
    if scale.dtype != torch.float32:
        raise bad_dtype(op, name, scale.dtype, (torch.float32,))
    if scale.numel() != 1 and scale.shape != (heads,):
        raise bad_shape(op, name, scale, f"one element or [{heads}], one a head")


def check_cache_dtype(op: str, name: str, cache: Tensor, x: Tensor) -> None:
    """The cache is FP8 or of the dtype of what is written."""
    if cache.dtype not in (x.dtype, *f.FP8):
        raise bad_dtype(op, name, cache.dtype, (x.dtype, *f.FP8))


def _shape(x: Tensor, cache: Tensor, layout: str, key: bool) -> tuple[bool, str]:
    """Whether `cache` holds heads like those of x [T, Hk, D], and the shape that does."""
    _, heads, size = x.shape
    if layout == "nhd":
        wanted = cache.dim() == 4 and cache.shape[1] >= 1 and cache.shape[2:] == (heads, size)
        return wanted, f"[blocks, block_size, {heads}, {size}]"
    run = run_of(cache)
    if key:
        text = f"[blocks, {heads}, {size}/{run}, block_size, {run}]"
        good = cache.dim() == 5 and cache.shape[1:3] == (heads, size // run) and cache.shape[3] >= 1
        return good and cache.shape[4] == run and size % run == 0, text
    text = f"[blocks, {heads}, block_size/{run}, {size}, {run}]"
    good = cache.dim() == 5 and cache.shape[1] == heads and cache.shape[2] >= 1 and cache.shape[3:] == (size, run)
    return good, text


def check_caches(
    op: str,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    layout: str,
) -> None:
    """k [T, Hk, D] and v [T, Hk, Dv] of one float dtype, and caches, slots and scales that fit them."""
    if k.dtype not in f.FLOATS:
        raise bad_dtype(op, "k", k.dtype, f.FLOATS)
    if k.dim() != 3 or min(k.shape[1:]) < 1:
        raise bad_shape(op, "k", k, "[T, Hk, D]")
    if v.dtype != k.dtype:
        raise bad_dtype(op, "v", v.dtype, (k.dtype,))
    if v.dim() != 3 or v.shape[:2] != k.shape[:2] or v.shape[2] < 1:
        raise bad_shape(op, "v", v, f"[{k.shape[0]}, {k.shape[1]}, Dv], tokens and heads as k")
    check_slots(op, slots, k.shape[0])
    for name, x, cache in (("k_cache", k, k_cache), ("v_cache", v, v_cache)):
        check_cache_dtype(op, name, cache, x)
        good, wanted = _shape(x, cache, layout, name == "k_cache")
        if not good:
            raise bad_shape(op, name, cache, wanted)
    if v_cache.dtype != k_cache.dtype:
        raise bad_dtype(op, "v_cache", v_cache.dtype, (k_cache.dtype,))
    in_k = k_cache.shape[1 if layout == "nhd" else 3]
    in_v = v_cache.shape[1] if layout == "nhd" else v_cache.shape[2] * v_cache.shape[4]
    if k_cache.shape[0] != v_cache.shape[0] or in_k != in_v:
        raise bad_shape(op, "v_cache", v_cache, f"{k_cache.shape[0]} blocks of {in_k} tokens, as k_cache")
    check_scale(op, "k_scale", k_scale, k_cache, k.shape[1])
    check_scale(op, "v_scale", v_scale, v_cache, k.shape[1])


def moved_by_writing(x: Tensor, cache: Tensor, slots: Tensor) -> int:
    """Bytes: the rows that have a slot are read and written. All slots count as used."""
    width = x.numel() // max(x.shape[0], 1)
    return slots.shape[0] * (width * (x.element_size() + cache.element_size()) + slots.element_size())
