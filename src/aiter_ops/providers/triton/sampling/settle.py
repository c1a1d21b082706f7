"""The least key that top-k and top-p leave of each row, from what `search` collected or from the whole row."""

import triton
import triton.language as tl

from aiter_ops.providers.triton.division import unsigned

from .numbers import (
    LEAST_KEY,
    LEAST_T,
    exponents,
    key_of,
    least_t,
    load_logits,
    mass_below,
    packed,
    race_of,
    row_facts,
    value_of,
    weight_of,
    words_at,
)
from .search import INFO, NEAR_K, NEAR_P, TOO_MANY, limits, mass_pair


@triton.jit
def _above(row_ptr, key, largest, scale, columns, BLOCK: tl.constexpr):
    """How many columns of a row can be drawn and have keys above `key`, int64, and their mass."""
    lane = tl.arange(0, BLOCK)
    number = tl.sum(tl.zeros([BLOCK], tl.int64), axis=0)
    mass = number
    tl.assume(columns > 0)
    for at in range(0, columns, BLOCK):
        x = load_logits(row_ptr, at + lane, columns)
        t = exponents(x, largest, scale)
        among = (t >= LEAST_T) & (key_of(x) > key)
        number += tl.sum(among.to(tl.int32), axis=0)
        mass += tl.sum(tl.where(among, weight_of(tl.where(among, t, 0.0)), 0), axis=0)
    return number, mass


@triton.jit
def _cut_of_row(row_ptr, k, p, top, largest, scale, columns, BLOCK: tl.constexpr):
    """The least key that top-k and top-p leave, int64, by bisection over a whole row."""
    cut = tl.full([], LEAST_KEY, tl.int64)
    if k < columns:
        high = top.to(tl.int64)
        while cut < high:
            middle = high - (high - cut >> 1)
            number, _ = _above(row_ptr, middle - 1, largest, scale, columns, BLOCK)
            enough = number >= k
            cut = tl.where(enough, middle, cut)
            high = tl.where(enough, high, middle - 1)
    if p < 1.0:
        _, total = _above(row_ptr, cut - 1, largest, scale, columns, BLOCK)
        below = mass_below(p, total)
        high = top.to(tl.int64)
        while cut < high:
            middle = cut + (high - cut >> 1)
            _, mass = _above(row_ptr, middle, largest, scale, columns, BLOCK)
            within = mass < below
            high = tl.where(within, middle, high)
            cut = tl.where(within, cut, middle + 1)
    return cut


@triton.jit
def _cut_of_list(key, place, weight, there, k, p, has_kth, above, apart, between):
    """The same from a list of candidates, of which `there` are real, and the masses of other columns."""
    cut = tl.full([], LEAST_KEY, tl.int64)
    if has_kth:
        among = there & ((place & NEAR_K) != 0)
        cut = tl.min(tl.where(among, key, 0x7FFFFFFF), axis=0).to(tl.int64)
        high = tl.max(tl.where(among, key, LEAST_KEY), axis=0).to(tl.int64)
        while cut < high:
            middle = high - (high - cut >> 1)
            enough = tl.sum((among & (key >= middle)).to(tl.int32), axis=0) >= k - above
            cut = tl.where(enough, middle, cut)
            high = tl.where(enough, high, middle - 1)
    if p < 1.0:
        below = mass_below(p, apart + between + tl.sum(tl.where(there & (key >= cut), weight, 0), axis=0))
        among = there & ((place & NEAR_P) != 0)
        low = tl.min(tl.where(among, key, 0x7FFFFFFF), axis=0).to(tl.int64) - 1
        high = tl.max(tl.where(among, key, LEAST_KEY), axis=0).to(tl.int64)
        while low < high:
            middle = low + (high - low >> 1)
            within = apart + tl.sum(tl.where(among & (key > middle), weight, 0), axis=0) < below
            high = tl.where(within, middle, high)
            low = tl.where(within, low, middle + 1)
        cut = tl.maximum(cut, low)
    return cut


@triton.jit(do_not_specialize=["parts", "given"])
def settle_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    offsets_ptr,
    peaks_ptr,
    info_ptr,
    sums_ptr,
    keys_ptr,
    places_ptr,
    tokens_ptr,
    parts,
    given,
    columns,
    stride,
    PARTS: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: completes its `info`, and draws its token where the candidates hold all that can be drawn.

    given: as `limits`, bit 2 min_p.
    """
    row = unsigned(tl.program_id(0))
    info_ptr += row * INFO
    state = tl.load(info_ptr)
    if state == 0:
        tl.store(info_ptr + 5, 0)
        tl.store(info_ptr + 6, LEAST_KEY)
        return
    top, largest, scale, _ = row_facts(peaks_ptr, temperature_ptr, row, parts, PARTS)
    k, p = limits(top_k_ptr, top_p_ptr, given, row, columns)
    if state == TOO_MANY:
        cut = _cut_of_row(logits_ptr + row * stride, k, p, top, largest, scale, columns, BLOCK)
        tl.store(info_ptr + 5, 0)
        tl.store(info_ptr + 6, cut.to(tl.int32))
        return
    lane = tl.arange(0, LIST)
    there = lane < tl.load(info_ptr + 1)
    key = tl.load(keys_ptr + row * LIST + lane, mask=there, other=LEAST_KEY)
    t = tl.where(there, exponents(value_of(key), largest, scale), 0.0)
    place = tl.load(places_ptr + row * LIST + lane, mask=there, other=0)
    apart, between = mass_pair(sums_ptr, row, parts, PARTS)
    has_kth, above, complete = tl.load(info_ptr + 2) != 0, tl.load(info_ptr + 3), tl.load(info_ptr + 4)
    cut = _cut_of_list(key, place, weight_of(t), there, k, p, has_kth, above, apart, between)
    tl.store(info_ptr + 5, complete)
    tl.store(info_ptr + 6, cut.to(tl.int32))
    if complete != 0:
        least = LEAST_T
        if given & 4:
            least = least_t(tl.load(min_p_ptr + row))
        column = place & (NEAR_P - 1)
        keep = there & (key >= cut) & (t >= least)
        race = race_of(words_at(column, tl.load(seeds_ptr + row), tl.load(offsets_ptr + row)), t)
        best = tl.min(tl.where(keep, packed(race, column), 0x7FFFFFFFFFFFFFFF), axis=0)
        tl.store(tokens_ptr + row, (best & 0x7FFFFFFF).to(tl.int32))
