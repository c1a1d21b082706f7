"""Where top-k and top-p cut a row, exactly, without sorting: histograms of t, then a search among few candidates.

count_kernel    counts the columns in each of 128 bins of t, 1/4 octave wide down to t = -16, 1/2 beyond: so the bin of
                the k-th largest is known, and that of the top-p threshold up to what a mass known by counts and edges
                leaves open
refine_kernel   where those bins hold more candidates than a list takes: counts again, in 126 bins of their range, one of
                all before it and one of all beyond it, of which it adds up the masses
collect_kernel  lists the candidates, and adds up the exact masses of other columns
settle_kernel   finds the thresholds among the candidates, by bisection of keys on exact counts and masses. Where the
                candidates hold all that can be drawn (a peaked row, a small top-k), it draws the token at once

Where the candidates are still too many (equal logits, extreme temperatures), settle_kernel bisects over the whole row:
slower, with the same result. Bins only narrow the search, so that the thresholds follow `aiter_ops.ops.sampling` exactly.

Triton counts a histogram by ballots of a warp, whose cost grows with the bins: hence few bins, twice.
"""

import triton
import triton.language as tl

from aiter_ops.providers.triton.division import unsigned

from .numbers import (
    LEAST_T,
    exponents,
    key_of,
    load_logits,
    mass_below,
    row_and_part,
    row_facts,
    weight_of,
)

BINS = tl.constexpr(128)
FIRST_EDGE = tl.constexpr(0x41800000)
"""The bits of 16.0: a bin is the exponent and the upper 6 bits of the mantissa of 16 - t, from there on."""

EDGE_SHIFT = tl.constexpr(17)
LAST = tl.constexpr(127)
"""The bin of all that is beyond the range of a refined histogram; bin 0 is all before it."""

INFO = tl.constexpr(8)
"""Numbers int32 kept for a row between the kernels: see `collect_kernel`."""

LISTED, TOO_MANY = tl.constexpr(1), tl.constexpr(2)
"""States of a row whose candidates are in its list, and of one whose are too many for it; 0: nothing to search."""

NEAR_P, NEAR_K = tl.constexpr(1 << 24), tl.constexpr(1 << 25)
"""Added to the column of a candidate in the bins of the top-p threshold, and in the k-th largest's."""

TOGETHER = tl.constexpr(16)
"""Parts whose histograms are read at once."""


@triton.jit
def bin_of(t):
    """int32 0..127 for -40 <= t <= 0."""
    return ((16.0 - t).to(tl.int32, bitcast=True) - FIRST_EDGE) >> EDGE_SHIFT


@triton.jit
def edge_of(bin):
    """The largest t of a bin."""
    return 16.0 - ((bin << EDGE_SHIFT) + FIRST_EDGE).to(tl.float32, bitcast=True)


@triton.jit
def place_of(t, start, inverse, refined):
    """The bin of t: among all, or refined: 0 above `start`, then 126 of 1 / inverse each, then `LAST`."""
    own = bin_of(t)
    if refined:
        steps = tl.minimum((start - t) * inverse, 126.0)
        own = tl.where(t > start, 0, tl.maximum(steps, 0.0).to(tl.int32) + 1)
    return own


@triton.jit
def heavy(t):
    """What no weight at or below t exceeds, int64: 2^-16 is above what rounding of edges and of 2^t can come to."""
    weight = weight_of(tl.maximum(t, -48.0))
    return weight + (weight >> 16) + 1


@triton.jit
def light(t):
    """What no weight at or above t falls below, int64."""
    weight = weight_of(tl.maximum(t, -48.0))
    return tl.maximum(weight - (weight >> 16) - 1, 1)


@triton.jit
def limits(top_k_ptr, top_p_ptr, given, row, columns):
    """A row's top-k, `columns` where it is off, and top-p, 1 where it is off. given: bit 0 top_k, bit 1 top_p."""
    k = columns
    if given & 1:
        k = tl.load(top_k_ptr + row)
        k = tl.where((k <= 0) | (k > columns), columns, k)
    p = 1.0
    if given & 2:
        p = tl.load(top_p_ptr + row)
        p = tl.where(p < 1.0, p, 1.0)
    return k, p


@triton.jit
def _counts(counts_ptr, row, part, parts):
    """The histogram [BINS] of a row, and that of its parts before `part`."""
    bin = tl.arange(0, BINS)[None, :]
    total = tl.zeros([BINS], tl.int32)
    before = tl.zeros([BINS], tl.int32)
    tl.assume(parts > 0)
    for at in range(0, parts, TOGETHER):
        other = at + tl.arange(0, TOGETHER)[:, None]
        some = tl.load(counts_ptr + (row * parts + other) * BINS + bin, mask=other < parts, other=0)
        total += tl.sum(some, axis=0)
        before += tl.sum(tl.where(other < part, some, 0), axis=0)
    return total, before


@triton.jit
def _span(count, upper, lower, refined, head, below, k, p, columns):
    """(first, last, kth, above) of a histogram [BINS] whose bins have t from `upper` down to `lower`.

    The k-th largest is in bin `kth` (BINS: there are fewer, or top-k is off), with `above` columns before it; the top-p
    threshold in the bins from `first` to `last`. refined: bin 0 has the mass `head`, and bin LAST the mass `below`.
    """
    bin = tl.arange(0, BINS)
    kth = tl.where(k < columns, tl.sum((tl.cumsum(count, axis=0) < k).to(tl.int32), axis=0), BINS)
    above = tl.sum(tl.where(bin < kth, count, 0), axis=0)
    first = kth
    last = kth
    if p < 1.0:
        lightest, heaviest = light(lower), heavy(upper)
        least = unsigned(count) * lightest
        most = unsigned(count) * heaviest
        if refined:
            least = tl.where(bin == 0, head, tl.where(bin == LAST, below, least))
            most = tl.where(bin == 0, head, tl.where(bin == LAST, below, most))
        # of the k-th's bin the columns from k on are out, unless they equal it
        least = tl.where(bin == kth, (k - above).to(tl.int64) * lightest, least)
        least, most = tl.where(bin <= kth, least, 0), tl.where(bin <= kth, most, 0)
        from_least, from_most = tl.cumsum(least, axis=0), tl.cumsum(most, axis=0)
        # the threshold is beyond a bin where the mass down to it is too little even with the most of it, the least beyond
        too_little = from_most < mass_below(p, from_most + (tl.sum(least, axis=0) - from_least))
        enough = from_least >= mass_below(p, from_least + (tl.sum(most, axis=0) - from_most))
        first = tl.sum(too_little.to(tl.int32), axis=0)
        last = tl.minimum(tl.sum((~enough).to(tl.int32), axis=0), BINS - 1)
        first = tl.minimum(first, last)
    return first, last, kth, above


@triton.jit
def _within(count, first, last, kth, LIST: tl.constexpr):
    """Whether all columns down to `last`, and those of kth, fit a list; `first`, 0 if so; how many are to be listed."""
    bin = tl.arange(0, BINS)
    complete = tl.sum(tl.where((bin <= last) | (bin == kth), count, 0), axis=0) <= LIST
    first = tl.where(complete, 0, first)
    listed = tl.sum(tl.where(((bin >= first) & (bin <= last)) | (bin == kth), count, 0), axis=0)
    return complete, first, listed


@triton.jit
def _range(first, last, kth):
    """Of a refined histogram: the t it starts from, 1 / the width of a bin, and that width."""
    # edges are rounded: a little more on both sides
    start = edge_of(first) + 0.0001
    whole = start - edge_of(tl.maximum(last, tl.where(kth < BINS, kth, 0)) + 1) + 0.0001
    return start, tl.div_rn(126.0, whole), tl.div_rn(whole, 126.0)


@triton.jit(do_not_specialize=["parts", "given"])
def count_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    peaks_ptr,
    counts_ptr,
    parts,
    given,
    columns,
    stride,
    chunk,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """counts [R, parts, BINS] int32 of the columns that can be drawn. peaks: [R, parts]."""
    me, row, part = row_and_part(parts)
    _, largest, scale, plain = row_facts(peaks_ptr, temperature_ptr, row, parts, PARTS)
    k, p = limits(top_k_ptr, top_p_ptr, given, row, columns)
    if plain | ((k == columns) & (p == 1.0)):
        return
    row_ptr = logits_ptr + row * stride
    first, end, lane = part * chunk, tl.minimum(part * chunk + chunk, columns), tl.arange(0, BLOCK)
    tl.assume(first < end)
    total = tl.zeros([BINS], tl.int32)
    for at in range(first, end, BLOCK):
        t = exponents(load_logits(row_ptr, at + lane, columns), largest, scale)
        live = t >= LEAST_T
        total += tl.histogram(bin_of(tl.where(live, t, 0.0)), BINS, mask=live)
    tl.store(counts_ptr + me * BINS + tl.arange(0, BINS), total)


@triton.jit(do_not_specialize=["parts", "given"])
def refine_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    peaks_ptr,
    counts_ptr,
    finer_ptr,
    masses_ptr,
    parts,
    given,
    columns,
    stride,
    chunk,
    PARTS: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """finer [R, parts, BINS] int32, the refined histogram of rows that need one, and masses [R, parts, 2] int64 of its
    first and last bin.
    """
    me, row, part = row_and_part(parts)
    _, largest, scale, plain = row_facts(peaks_ptr, temperature_ptr, row, parts, PARTS)
    k, p = limits(top_k_ptr, top_p_ptr, given, row, columns)
    if plain | ((k == columns) & (p == 1.0)):
        return
    count, _ = _counts(counts_ptr, row, part, parts)
    bin = tl.arange(0, BINS)
    none = (k - k).to(tl.int64)
    first, last, kth, _ = _span(count, edge_of(bin), edge_of(bin + 1), False, none, none, k, p, columns)
    _, _, listed = _within(count, first, last, kth, LIST)
    if listed <= LIST:
        return
    start, inverse, _ = _range(first, last, kth)
    row_ptr = logits_ptr + row * stride
    begin, end, lane = part * chunk, tl.minimum(part * chunk + chunk, columns), tl.arange(0, BLOCK)
    tl.assume(begin < end)
    total = tl.zeros([BINS], tl.int32)
    head, below = none, none
    for at in range(begin, end, BLOCK):
        t = exponents(load_logits(row_ptr, at + lane, columns), largest, scale)
        live = t >= LEAST_T
        t = tl.where(live, t, 0.0)
        own = place_of(t, start, inverse, True)
        total += tl.histogram(own, BINS, mask=live)
        if p < 1.0:
            weight = weight_of(t)
            head += tl.sum(tl.where(live & (own == 0), weight, 0), axis=0)
            below += tl.sum(tl.where(live & (own == LAST), weight, 0), axis=0)
    tl.store(finer_ptr + me * BINS + bin, total)
    tl.store(masses_ptr + me * 2, head)
    tl.store(masses_ptr + me * 2 + 1, below)


@triton.jit
def mass_pair(masses_ptr, row, parts, PARTS: tl.constexpr):
    """The sums over the parts of masses [R, parts, 2]."""
    part = tl.arange(0, PARTS)
    at = masses_ptr + (row * parts + part) * 2
    there = part < parts
    return tl.sum(tl.load(at, mask=there, other=0), axis=0), tl.sum(tl.load(at + 1, mask=there, other=0), axis=0)


@triton.jit(do_not_specialize=["parts", "given"])
def collect_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    peaks_ptr,
    counts_ptr,
    finer_ptr,
    masses_ptr,
    info_ptr,
    sums_ptr,
    keys_ptr,
    places_ptr,
    parts,
    given,
    columns,
    stride,
    chunk,
    PARTS: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """info [R, INFO] int32: state, candidates, whether there is a k-th largest, columns above its bin, complete (and from
    `settle_kernel`: whether the token is drawn, the least key that stays). sums [R, parts, 2] int64: the masses of the
    columns before the bins of the top-p threshold, and of those between them and the k-th's bin. keys and places
    [R, LIST] int32: the candidates' keys, and columns with `NEAR_P` and `NEAR_K`.
    """
    me, row, part = row_and_part(parts)
    _, largest, scale, plain = row_facts(peaks_ptr, temperature_ptr, row, parts, PARTS)
    k, p = limits(top_k_ptr, top_p_ptr, given, row, columns)
    bin = tl.arange(0, BINS)
    info_ptr += row * INFO
    if plain | ((k == columns) & (p == 1.0)):
        if part == 0:
            tl.store(info_ptr, 0)
        return
    count, before = _counts(counts_ptr, row, part, parts)
    none = (k - k).to(tl.int64)
    first, last, kth, above = _span(count, edge_of(bin), edge_of(bin + 1), False, none, none, k, p, columns)
    complete, top, listed = _within(count, first, last, kth, LIST)
    refined = listed > LIST
    start, inverse = 0.0, 1.0
    if refined:
        start, inverse, width = _range(first, last, kth)
        count, before = _counts(finer_ptr, row, part, parts)
        head, below = mass_pair(masses_ptr, row, parts, PARTS)
        upper = start - (bin - 1).to(tl.float32) * width
        first, last, kth, above = _span(count, upper, upper - width, True, head, below, k, p, columns)
        complete, top, listed = _within(count, first, last, kth, LIST)
    state = tl.where(listed <= LIST, LISTED, TOO_MANY)
    # fewer columns than k can be drawn, and top-p is off
    state = tl.where((kth == BINS) & (p == 1.0), 0, state)
    if part == 0:
        tl.store(info_ptr, state)
        tl.store(info_ptr + 1, listed)
        tl.store(info_ptr + 2, (kth < BINS).to(tl.int32))
        tl.store(info_ptr + 3, above)
        tl.store(info_ptr + 4, complete.to(tl.int32))
    if state != LISTED:
        return
    base = tl.sum(tl.where(((bin >= top) & (bin <= last)) | (bin == kth), before, 0), axis=0)
    row_ptr = logits_ptr + row * stride
    begin, end, lane = part * chunk, tl.minimum(part * chunk + chunk, columns), tl.arange(0, BLOCK)
    tl.assume(begin < end)
    keys_ptr += row * LIST
    places_ptr += row * LIST
    apart, between = none, none
    for at in range(begin, end, BLOCK):
        column = at + lane
        x = load_logits(row_ptr, column, columns)
        t = exponents(x, largest, scale)
        live = t >= LEAST_T
        t = tl.where(live, t, 0.0)
        # what cannot be drawn is in no bin
        own = tl.where(live, place_of(t, start, inverse, refined), 2 * BINS)
        if p < 1.0:
            weight = weight_of(t)
            apart += tl.sum(tl.where(own < top, weight, 0), axis=0)
            between += tl.sum(tl.where((own > last) & (own < kth), weight, 0), axis=0)
        mark = tl.where((own >= top) & (own <= last), NEAR_P, 0) + tl.where(own == kth, NEAR_K, 0)
        number = tl.sum((mark != 0).to(tl.int32), axis=0)
        if number > 0:
            place = base + tl.cumsum((mark != 0).to(tl.int32), axis=0) - 1
            tl.store(keys_ptr + place, key_of(x), mask=mark != 0)
            tl.store(places_ptr + place, column + mark, mask=mark != 0)
            base += number
    sums_ptr += me * 2
    tl.store(sums_ptr, apart)
    tl.store(sums_ptr + 1, between)
