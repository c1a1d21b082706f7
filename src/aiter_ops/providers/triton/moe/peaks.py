"""One scale for all rows that are in use, taken from them in two steps without a host wait."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton.common import magnitude_bits, widen
from aiter_ops.providers.triton.launch import Launcher
from aiter_ops.providers.triton.quant.tensors import deal, piece_of, quantise_by_peaks
from aiter_ops.providers.triton.tiles.quant import MOST_PEAKS

from .products import local_expert, valid_tokens


@dataclass(frozen=True)
class Served:
    """Which rows are in use: of token row // share < valid where that is given, and where `ids` are, of an expert here.

    ids: an expert id a row, or None: all; expert_map as of the op; experts: how many are here.
    """

    ids: Tensor | None
    expert_map: Tensor | None
    valid: Tensor | None
    experts: int
    share: int


@triton.jit(do_not_specialize=["total", "programs", "experts", "mapped", "share", "picked", "counted"])
def served_peaks_kernel(
    x_ptr,
    ids_ptr,
    map_ptr,
    valid_ptr,
    peak_ptr,
    total,
    programs,
    experts,
    mapped,
    share,
    picked,
    counted,
    stride,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    """peak[p] = the largest magnitude, as its bits, in tiles p, p + programs, ... of x, rows in use only."""
    PIECES: tl.constexpr = (N + BLOCK - 1) // BLOCK
    valid = valid_tokens(valid_ptr, counted)
    peaks = tl.zeros([SPAN, BLOCK], tl.int32)
    for index in range(tl.program_id(0), tl.cdiv(total, SPAN), programs):
        there, _, mask = piece_of(index, total, stride, N, BLOCK, SPAN)
        row = (index * SPAN + tl.arange(0, SPAN)[:, None]) // PIECES
        id = tl.load(ids_ptr + row, mask=(row * PIECES < total) & (picked != 0), other=0)
        served = (local_expert(id, map_ptr, experts, mapped) >= 0) | (picked == 0)
        mask = mask & served & (row // share < valid)
        peaks = tl.maximum(peaks, magnitude_bits(widen(tl.load(x_ptr + there, mask=mask, other=0.0))))
    tl.store(peak_ptr + tl.program_id(0), tl.max(tl.max(peaks, axis=1), axis=0))


_peaks = Launcher(served_peaks_kernel, free=7)


def quantise_together(x: Tensor, dtype: torch.dtype, served: Served) -> tuple[Tensor, Tensor]:
    """Codes of x [rows, N] with unit stride in a row, and their one scale [1]."""
    dealt = deal(x)
    programs = min(dealt.tiles, MOST_PEAKS)
    peaks = x.new_empty(MOST_PEAKS, dtype=torch.int32)
    ids, where, valid = served.ids, served.expert_map, served.valid
    tensors = (x, peaks if ids is None else ids, peaks if where is None else where, peaks if valid is None else valid)
    mapped = 0 if where is None else where.numel()
    flags = (int(ids is not None), int(valid is not None))
    numbers = (dealt.total, programs, served.experts, mapped, served.share, *flags, x.stride(0))
    _peaks(programs, (*tensors, peaks), numbers, dealt.sizes, dealt.num_warps)
    return quantise_by_peaks(x, peaks, programs, dealt, dtype)
