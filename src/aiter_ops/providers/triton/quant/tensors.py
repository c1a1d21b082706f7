"""One scale for the whole tensor: given, or taken from it in two steps without a host wait."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.ops.formulas import code_max
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import (
    encode,
    inverse_of,
    inverse_of_made,
    magnitude_bits,
    new_like,
    scale_of,
    widen,
)
from aiter_ops.providers.triton.launch import Launcher, as_rows, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.quant import MOST_PEAKS, ONE_PASS, piece_tile

from .codes import divide
from .groups import quantise


@triton.jit
def piece_of(index, total, stride, N: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr):
    """Where tile `index` is: offsets into x with row stride `stride` and into a contiguous result, and the mask.
    A tile is SPAN of `total` pieces, a piece BLOCK columns of a row.
    """
    PIECES: tl.constexpr = (N + BLOCK - 1) // BLOCK
    piece = index * SPAN + tl.arange(0, SPAN)[:, None]
    row = (piece // PIECES).to(tl.int64)
    col = (piece % PIECES) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = piece < total
    if N % BLOCK != 0:
        mask = mask & (col < N)
    return row * stride + col, row * N + col, mask


@triton.jit(do_not_specialize=["total", "programs"])
def peaks_kernel(x_ptr, peak_ptr, total, programs, stride, N: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr):
    """peak[p] = the largest magnitude, as its bits, in tiles p, p + programs, ... of x."""
    peaks = tl.zeros([SPAN, BLOCK], tl.int32)
    for index in range(tl.program_id(0), tl.cdiv(total, SPAN), programs):
        there, _, mask = piece_of(index, total, stride, N, BLOCK, SPAN)
        peaks = tl.maximum(peaks, magnitude_bits(widen(tl.load(x_ptr + there, mask=mask, other=0.0))))
    tl.store(peak_ptr + tl.program_id(0), tl.max(tl.max(peaks, axis=1), axis=0))


@triton.jit(do_not_specialize=["total", "programs"])
def codes_kernel(
    x_ptr,
    peak_ptr,
    scale_ptr,
    q_ptr,
    total,
    programs,
    stride,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    TOP: tl.constexpr,
    PEAKS: tl.constexpr,
):
    """q = x / scale for SPAN pieces a program. PEAKS > 0: the scale follows from `programs` <= PEAKS maxima, which
    every program reads, and the first writes it; tiles go backwards, since x's end is what a cache still holds.
    """
    index = tl.program_id(0)
    if PEAKS > 0:
        index = tl.num_programs(0) - 1 - index
    source, target, mask = piece_of(index, total, stride, N, BLOCK, SPAN)
    x = widen(tl.load(x_ptr + source, mask=mask, other=0.0, eviction_policy="evict_first"))
    if PEAKS > 0:
        at = tl.arange(0, PEAKS)
        peak = tl.max(tl.load(peak_ptr + at, mask=at < programs, other=0), axis=0)
        scale = scale_of(peak.to(tl.float32, bitcast=True), TOP, False)
        if tl.program_id(0) == 0:
            tl.store(scale_ptr, scale)
        inverse = inverse_of_made(scale)
    else:
        scale = tl.load(scale_ptr)
        inverse = inverse_of(scale)
    codes = encode(divide(x, scale, inverse, PEAKS == 0), 1.0, q_ptr.dtype.element_ty, TOP, PEAKS == 0)
    tl.store(q_ptr + target, codes, mask=mask)


_peaks, _codes = Launcher(peaks_kernel, free=2), Launcher(codes_kernel, free=2)

Quantised = tuple[Tensor, Tensor]
"""Codes and their scale [1]."""


@dataclass(frozen=True)
class Dealt:
    """How x [rows, N] is dealt to programs: `total` pieces, `sizes` the kernels' constants."""

    total: int
    sizes: tuple[int, int, int]
    num_warps: int

    @property
    def tiles(self) -> int:
        return -(-self.total // self.sizes[2])


def deal(x: Tensor) -> Dealt:
    rows, width = x.shape
    tile = piece_tile(machine(), rows, width, x.element_size())
    return Dealt(rows * -(-width // tile.block), (width, tile.block, tile.span), tile.num_warps)


def quantise_by_peaks(x: Tensor, peaks: Tensor, programs: int, dealt: Dealt, dtype: torch.dtype) -> Quantised:
    """x [rows, N] with unit stride in a row, its scale from the maxima that `programs` programs found."""
    scale = x.new_empty(1, dtype=torch.float32)
    q = new_like(x, dtype)
    constants = (*dealt.sizes, code_max(dtype), MOST_PEAKS)
    _codes(dealt.tiles, (x, peaks, scale, q), (dealt.total, programs, x.stride(0)), constants, dealt.num_warps)
    return q, scale


def quantise_with(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes of x [rows, N] with unit stride in a row, with one given scale."""
    dealt, q = deal(x), new_like(x, dtype)
    constants = (*dealt.sizes, code_max(dtype), 0)
    _codes(dealt.tiles, (x, x, scale, q), (dealt.total, 0, x.stride(0)), constants, dealt.num_warps)
    return q


def _flat(x: Tensor) -> Tensor:
    return as_rows(x)[0].view(-1, x.shape[-1])


@PROVIDER.implements("per_tensor_quant", refuses=lambda t: lambda x, dtype: fp8_predicate(t, dtype))
def per_tensor_quant(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    assert dtype is not None
    if x.numel() <= ONE_PASS:
        q, scale = quantise(x.reshape(1, -1), x.numel(), dtype)
        return q.view(x.shape), scale.view(1)
    flat = _flat(x)
    dealt = deal(flat)
    programs = min(dealt.tiles, MOST_PEAKS)
    peaks = x.new_empty(MOST_PEAKS, dtype=torch.int32)
    _peaks(programs, (flat, peaks), (dealt.total, programs, flat.stride(0)), dealt.sizes, dealt.num_warps)
    q, scale = quantise_by_peaks(flat, peaks, programs, dealt, dtype)
    return q.view(x.shape), scale


@PROVIDER.implements(
    "per_tensor_quant_static", refuses=lambda t: lambda x, scale, dtype: fp8_predicate(t, dtype), batch_invariant=True
)
def per_tensor_quant_static(x: Tensor, scale: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    assert dtype is not None
    return quantise_with(_flat(x), scale, dtype).view(x.shape)
