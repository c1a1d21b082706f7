"""Drawing a token: the largest logit, where top-k and top-p cut (`search`, `settle`), then a race of the columns that are left."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import Launcher, as_rows, machine
from aiter_ops.providers.triton.tiles.sampling import MOST_LISTED, sample_tile

from .largest import least, peak, rank
from .numbers import (
    EXACT,
    LEAST_KEY,
    LEAST_T,
    exponents,
    key_of,
    least_t,
    load_logits,
    packed,
    race_of,
    row_and_part,
    row_facts,
    words_of,
)
from .search import BINS, INFO, collect_kernel, count_kernel, refine_kernel
from .settle import settle_kernel


@triton.jit(do_not_specialize=["parts", "given"])
def race_kernel(
    logits_ptr,
    temperature_ptr,
    min_p_ptr,
    seeds_ptr,
    offsets_ptr,
    peaks_ptr,
    info_ptr,
    ranked_ptr,
    tokens_ptr,
    parts,
    given,
    columns,
    stride,
    chunk,
    CUT: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program runs the race of `chunk` columns of a row: ranked [R, PARTS] int64, as `rank` fills it of `packed` race and
    column of the first; where a row is one part, its column goes to tokens [R] instead. CUT: `info` of `search` holds; then a row
    whose token is drawn already keeps it. given: bit 2 min_p.
    """
    _, row, part = row_and_part(parts)
    cut = LEAST_KEY
    if CUT:
        cut = tl.load(info_ptr + row * INFO + 6)
        if tl.load(info_ptr + row * INFO + 5) != 0:
            if parts > 1:
                rank(ranked_ptr, tl.load(tokens_ptr + row).to(tl.int64), row, part, parts, PARTS)
            return
    _, largest, scale, plain = row_facts(peaks_ptr, temperature_ptr, row, parts, PARTS)
    lowest = LEAST_T
    if given & 4:
        lowest = least_t(tl.load(min_p_ptr + row))
    seed, offset = tl.load(seeds_ptr + row), tl.load(offsets_ptr + row)
    row_ptr = logits_ptr + row * stride
    begin, end, lane = part * chunk, tl.minimum(part * chunk + chunk, columns), tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for at in range(begin, end, BLOCK):
        x = load_logits(row_ptr, at + lane, columns)
        t = exponents(x, largest, scale)
        keep = tl.where(plain, x == largest, t >= lowest)
        if CUT:
            keep = keep & (key_of(x) >= cut)
        if tl.max(keep.to(tl.int32), axis=0) > 0:
            race = race_of(words_of(at, seed, offset, BLOCK), tl.where(keep, t, 0.0))
            race = tl.where(plain, 0.0, race)
            ahead = keep & (race < best)
            best = tl.where(ahead, race, best)
            where = tl.where(ahead, at, where)
    won = tl.min(best, axis=0)
    column = tl.min(tl.where(best == won, where + lane, 0x7FFFFFFF), axis=0)
    if parts == 1:
        tl.store(tokens_ptr + row, column)
    else:
        rank(ranked_ptr, packed(won, column), row, part, parts, PARTS)


_count, _refine, _collect, _settle, _race = (
    Launcher(kernel, free=2) for kernel in (count_kernel, refine_kernel, collect_kernel, settle_kernel, race_kernel)
)


@PROVIDER.implements("sample", batch_invariant=True)
def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    offsets: Tensor,
) -> Tensor:
    if logits.shape[1] == 1:
        return logits.new_zeros((len(logits),), dtype=torch.int32)
    rows = as_rows(logits)
    flat, count, columns, stride = rows
    tile = sample_tile(machine(), count, columns)
    tokens = logits.new_empty((count,), dtype=torch.int32)
    peaks = logits.new_empty((count, tile.parts), dtype=torch.int32)
    ranked = logits.new_empty((count, tile.most_parts), dtype=torch.int64)
    temperature, seeds, offsets = temperature.contiguous(), seeds.contiguous(), offsets.contiguous()
    given = (top_k is not None) + 2 * (top_p is not None) + 4 * (min_p is not None)
    k = peaks if top_k is None else top_k.contiguous()
    p = temperature if top_p is None else top_p.contiguous()
    m = temperature if min_p is None else min_p.contiguous()
    peak(rows, peaks, tokens, False, tile)
    numbers, wide = (tile.parts, given, columns, stride), count * tile.parts
    options: dict[str, Any] = {"num_warps": tile.num_warps, "options": EXACT}
    info = peaks
    if given & 3:
        both = logits.new_empty((2, count, tile.parts, BINS.value), dtype=torch.int32)
        masses = logits.new_empty((2, count, tile.parts, 2), dtype=torch.int64)
        lists = logits.new_empty((2, count, MOST_LISTED), dtype=torch.int32)
        info = logits.new_empty((count, INFO.value), dtype=torch.int32)
        seen, held = (flat, temperature, k, p, peaks), (tile.most_parts, MOST_LISTED, tile.block)
        found = (info, masses[1], lists[0], lists[1])
        _count(wide, (*seen, both[0]), (*numbers, tile.chunk), (tile.most_parts, tile.block), **options)
        _refine(wide, (*seen, *both, masses[0]), (*numbers, tile.chunk), held, **options)
        warps = tile.search_warps
        _collect(wide, (*seen, *both, masses[0], *found), (*numbers, tile.chunk), held, warps, options=EXACT)
        _settle(
            count,
            (*seen[:4], m, seeds, offsets, peaks, *found, tokens),
            numbers,
            (*held[:2], MOST_LISTED),
            warps,
            options=EXACT,
        )
    contest = (flat, temperature, m, seeds, offsets, peaks, info, ranked, tokens)
    _race(wide, contest, (*numbers, tile.chunk), (bool(given & 3), tile.most_parts, tile.block), **options)
    least(ranked, tokens, tile)
    return tokens
