"""The yardsticks: streaming kernels for the memory's rate, one row's latency, and nothing at all. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def stream_kernel(
    a_ptr,
    b_ptr,
    y_ptr,
    h_ptr,
    BLOCK: tl.constexpr,
    HAS_B: tl.constexpr,
    HAS_Y: tl.constexpr,
    HAS_H: tl.constexpr,
    ONCE: tl.constexpr,
):
    """One block a program: reads a (and b), writes y (and h), element by element; sizes are multiples of BLOCK.

    Without y and h the block's sum is written, one number for BLOCK elements. ONCE: both ways past the cache.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    policy: tl.constexpr = "evict_first" if ONCE else ""
    v = tl.load(a_ptr + at, eviction_policy=policy).to(tl.float32)
    if HAS_B:
        v += tl.load(b_ptr + at, eviction_policy=policy).to(tl.float32)
    if HAS_Y:
        tl.store(y_ptr + at, v.to(y_ptr.dtype.element_ty), eviction_policy=policy)
    if HAS_H:
        tl.store(h_ptr + at, (v + 1).to(h_ptr.dtype.element_ty), eviction_policy=policy)
    if not HAS_Y and not HAS_H:
        tl.store(y_ptr + tl.program_id(0), tl.sum(v, axis=0).to(y_ptr.dtype.element_ty))


@triton.jit
def floor_kernel(x_ptr, y_ptr, N: tl.constexpr, BLOCK: tl.constexpr):
    """One row a program: loads it, adds its sum to it, stores it. x, y [rows, N], contiguous, of one dtype."""
    col = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * N + col
    x = tl.load(x_ptr + at, mask=col < N, other=0).to(tl.float32)
    y = x + tl.sum(x, axis=0)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=col < N)


@triton.jit
def empty_kernel(x_ptr):
    """Nothing: what starting a kernel costs."""
    pass
