"""The largest logit of each row, and the first column that has it: one pass, rows cut into parts where there are few."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.division import divided, unsigned
from aiter_ops.providers.triton.launch import Launcher, as_rows, machine
from aiter_ops.providers.triton.tiles.sampling import SampleTile, sample_tile

from .numbers import LEAST_KEY, key_of, load_logits

ROWS = 4
"""Rows that a program of `least_kernel` does."""


@triton.jit
def rank(ranked_ptr, number, row, part, parts, PARTS: tl.constexpr):
    """Store ~number, int64, of a part in ranked [R, PARTS], so that the least number is the largest there; the last part
    fills the row up with what is never the largest, as what is not written might be.
    """
    slot = tl.arange(0, PARTS)
    value = tl.where(slot == part, ~number, -0x8000000000000000)
    tl.store(ranked_ptr + row * PARTS + slot, value, mask=(slot == part) | ((part == parts - 1) & (slot >= parts)))


@triton.jit(do_not_specialize=["parts"])
def peak_kernel(
    logits_ptr,
    ranked_ptr,
    tokens_ptr,
    parts,
    columns,
    stride,
    chunk,
    PLACE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program takes `chunk` columns of a row. Without PLACE ranked [R, parts] int32 is the largest key of each part.
    With it ranked is int64 [R, PARTS] as `rank` fills it of -key, then the first column that has it, so that the least is
    the row's; where a row is one part, its column goes to tokens [R] instead.
    """
    row, part = divided(tl.program_id(0), parts)
    row = unsigned(row)
    row_ptr = logits_ptr + row * stride
    first, lane = part * chunk, tl.arange(0, BLOCK)
    end = tl.minimum(first + chunk, columns)
    tl.assume(first < end)
    best = tl.full([BLOCK], LEAST_KEY, tl.int32)
    where = tl.zeros([BLOCK], tl.int32)
    for at in range(first, end, BLOCK):
        key = key_of(load_logits(row_ptr, at + lane, columns))
        if PLACE:
            where = tl.where(key > best, at, where)
        best = tl.maximum(best, key)
    top = tl.max(best, axis=0)
    if PLACE:
        column = tl.min(tl.where(best == top, where + lane, 0x7FFFFFFF), axis=0)
        if parts == 1:
            tl.store(tokens_ptr + row, column)
        else:
            rank(ranked_ptr, (-top.to(tl.int64) << 32) | unsigned(column), row, part, parts, PARTS)
    else:
        tl.store(ranked_ptr + row * parts + part, top)


@triton.jit(do_not_specialize=["rows"])
def least_kernel(ranked_ptr, tokens_ptr, rows, PARTS: tl.constexpr, ROWS: tl.constexpr):
    """tokens [R]: the low word of the least number that int64 `ranked` [R, PARTS] has of a row, ROWS rows a program."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = row.to(tl.int64)[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    least = ~tl.max(tl.load(ranked_ptr + at, mask=(row < rows)[:, None], other=0), axis=1)
    tl.store(tokens_ptr + row, (least & 0x7FFFFFFF).to(tl.int32), mask=row < rows)


_peak, _least = Launcher(peak_kernel), Launcher(least_kernel)


def peak(rows: tuple[Tensor, int, int, int], ranked: Tensor, tokens: Tensor, place: bool, tile: SampleTile) -> None:
    """Launch `peak_kernel` over rows as `as_rows` gives them."""
    flat, count, columns, stride = rows
    numbers = (tile.parts, columns, stride, tile.chunk)
    _peak(count * tile.parts, (flat, ranked, tokens), numbers, (place, tile.most_parts, tile.block), tile.num_warps)


def least(ranked: Tensor, tokens: Tensor, tile: SampleTile) -> None:
    """Launch `least_kernel`, where a row has more than one part."""
    if tile.parts > 1:
        rows = len(tokens)
        _least(-(-rows // ROWS), (ranked, tokens), (rows,), (tile.most_parts, ROWS), 1)


@PROVIDER.implements("greedy", batch_invariant=True)
def greedy(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return logits.new_zeros((len(logits),), dtype=torch.int32)
    rows = as_rows(logits)
    tile = sample_tile(machine(), rows[1], rows[2])
    tokens = logits.new_empty((rows[1],), dtype=torch.int32)
    ranked = logits.new_empty((rows[1], tile.most_parts), dtype=torch.int64)
    peak(rows, ranked, tokens, True, tile)
    least(ranked, tokens, tile)
    return tokens
