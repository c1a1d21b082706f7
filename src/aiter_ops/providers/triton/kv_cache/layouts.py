"""What kernels ask of caches and scales: strides by layout, and reasons to refuse."""

from __future__ import annotations

from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.ops.formulas import FP8, code_max
from aiter_ops.ops.kv_cache.pages import run_of
from aiter_ops.providers.triton.launch import fp8_predicate


def block_size_of(k_cache: Tensor, layout: str) -> int:
    return k_cache.shape[1 if layout == "nhd" else 3]


def together(cache: Tensor, layout: str) -> int:
    """X of the kernels."""
    return 0 if layout == "nhd" else run_of(cache)


def strides(cache: Tensor, layout: str, key: bool) -> tuple[int, int, int, int]:
    """by_block, by_place, by_head, by_run of the kernels."""
    s = cache.stride()
    if layout == "nhd":
        return s[0], s[1], s[2], 0
    return (s[0], s[3], s[1], s[2]) if key else (s[0], s[2], s[1], 0)


def top(cache: Tensor) -> float:
    """The largest code of an FP8 cache, 0 for another."""
    return code_max(cache.dtype) if cache.dtype in FP8 else 0.0


def scaled(scale: Tensor | None) -> str:
    """SCALED of the kernels."""
    return "none" if scale is None else "one" if scale.numel() == 1 else "heads"


def step(scale: Tensor | None) -> int:
    """Between the scales of two heads."""
    return 0 if scale is None or scale.numel() == 1 else scale.stride(0)


def unwritable(platform: Platform, cache: Tensor, layout: str, key: bool) -> str | None:
    """Why a kernel does not write this cache, or None."""
    if cache.dtype in FP8 and (reason := fp8_predicate(platform, cache.dtype)):
        return reason
    name = "k_cache" if key else "v_cache"
    if cache.stride(-1) != 1:
        return f"the last dimension of {name} has a stride of {cache.stride(-1)}; the kernel takes 1"
    if layout != "nhd" and cache.stride(3) != run_of(cache):
        return f"dimension 3 of {name} has a stride of {cache.stride(3)}; the kernel takes {run_of(cache)}"
    return None
