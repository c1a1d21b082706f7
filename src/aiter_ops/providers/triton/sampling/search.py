"""Where top-k and top-p cut a row, exactly, without sorting: a histogram of t, then a search among few candidates.

count_kernel    counts the columns in each of 4096 bins of t, 1/128 octave wide down to t = -16, 1/64 beyond
collect_kernel  finds the bins that must hold the two thresholds: counts are exact, masses of bins known by their edges
                to half a percent; adds up the exact masses of all other bins and lists the candidates
settle_kernel   finds the thresholds among the candidates, by bisection of keys on exact counts and masses. Where the
                candidates hold all that can be drawn (a small top-k), it draws the token at once

Where the candidates of a row do not fit their list (many equal logits, extreme temperatures), settle_kernel bisects over
the whole row instead: slower, with the same result.
"""

import triton
import triton.language as tl

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

BINS = tl.constexpr(4096)
FIRST_EDGE = tl.constexpr(0x41800000)
"""The bits of 16.0: a bin is the exponent and the upper 11 bits of the mantissa of 16 - t, from there on."""

INFO = tl.constexpr(8)
"""Numbers int32 kept for a row between the kernels: see `collect_kernel`."""

LISTED, TOO_MANY = tl.constexpr(1), tl.constexpr(2)
"""States of a row whose candidates are in its list, and of one whose are too many for it; 0: nothing to search."""


@triton.jit
def bin_of(t):
    """int32 0..4095 for -40 <= t <= 0."""
    return ((16.0 - t).to(tl.int32, bitcast=True) - FIRST_EDGE) >> 12


@triton.jit
def edge_weight(bin, UPPER: tl.constexpr):
    """A weight, int64, that none in the bin exceeds (UPPER), or that none in the bin before falls below."""
    u = ((bin << 12) + FIRST_EDGE).to(tl.float32, bitcast=True)
    weight = weight_of(16.0 - u)
    # 2^-16 of it is above what rounding 16 - t, and 2^t, can come to
    margin = (weight >> 16) + 1
    return weight + margin if UPPER else tl.maximum(weight - margin, 1)


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


@triton.jit(do_not_specialize=["parts", "counted", "given"])
def count_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    peaks_ptr,
    counts_ptr,
    parts,
    counted,
    given,
    columns,
    stride,
    chunk,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """counts [R, counted, BINS] int32 of the columns that can be drawn. peaks: [R, parts]."""
    row = (tl.program_id(0) // counted).to(tl.int64)
    part = tl.program_id(0) % counted
    _, largest, scale, plain = row_facts(peaks_ptr, temperature_ptr, row, parts, PARTS)
    k, p = limits(top_k_ptr, top_p_ptr, given, row, columns)
    if plain | ((k == columns) & (p == 1.0)):
        return
    row_ptr = logits_ptr + row * stride
    first, lane = part * chunk, tl.arange(0, BLOCK)
    total = tl.zeros([BINS], tl.int32)
    for at in range(first, tl.minimum(first + chunk, columns), BLOCK):
        t = exponents(load_logits(row_ptr, at + lane, columns), largest, scale)
        live = (t >= LEAST_T) & (at + lane < columns)
        total += tl.histogram(bin_of(tl.where(live, t, 0.0)), BINS, mask=live)
    tl.store(counts_ptr + (row * counted + part) * BINS + tl.arange(0, BINS), total)


@triton.jit
def _span(count, k, p, columns, LIST: tl.constexpr):
    """From the counts [BINS] of a row: (first, last, kth, above, listed, complete).

    The k-th largest is in bin `kth` (BINS: there are fewer, or top-k is off), with `above` columns before it; the top-p threshold in the
    bins from `first` to `last`. `listed` candidates are in those and in kth; complete: in all bins down to `last`.
    """
    bin = tl.arange(0, BINS)
    through = tl.cumsum(count, axis=0)
    kth = tl.where(k < columns, tl.sum((through < k).to(tl.int32), axis=0), BINS)
    above = tl.sum(tl.where(bin < kth, count, 0), axis=0)
    if p < 1.0:
        wide = count.to(tl.int64)
        light = wide * edge_weight(bin + 1, False)
        heavy = wide * edge_weight(bin, True)
        # of the k-th's bin the columns from k on are out, unless they equal it
        least = tl.where(bin == kth, (k - above).to(tl.int64) * edge_weight(bin + 1, False), light)
        low = tl.sum(tl.where(bin <= kth, least, 0), axis=0)
        high = tl.sum(tl.where(bin <= kth, heavy, 0), axis=0)
        first = tl.sum((tl.cumsum(heavy, axis=0) < mass_below(p, low)).to(tl.int32), axis=0)
        last = tl.sum((tl.cumsum(light, axis=0) < mass_below(p, high)).to(tl.int32), axis=0)
        last = tl.minimum(tl.minimum(last, kth), BINS - 1)
        first = tl.minimum(first, last)
    else:
        first = kth
        last = kth
    down = tl.sum(tl.where((bin <= last) | (bin == kth), count, 0), axis=0)
    complete = down <= LIST
    if complete:
        first = first * 0
    listed = tl.sum(tl.where(((bin >= first) & (bin <= last)) | (bin == kth), count, 0), axis=0)
    return first, last, kth, above, listed, complete


@triton.jit(do_not_specialize=["parts", "counted", "given"])
def collect_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    peaks_ptr,
    counts_ptr,
    info_ptr,
    masses_ptr,
    keys_ptr,
    places_ptr,
    parts,
    counted,
    given,
    columns,
    stride,
    chunk,
    PARTS: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """info [R, INFO] int32: state, candidates, kth, above, last, complete (and from `settle_kernel`: whether the token is
    drawn, the least key that stays). masses [R, counted, 2] int64: of the columns
    before the bins of the top-p threshold, and of those between them and the k-th's bin. keys and places [R, LIST] int32:
    the candidates' keys and columns.
    """
    row = (tl.program_id(0) // counted).to(tl.int64)
    part = tl.program_id(0) % counted
    _, largest, scale, plain = row_facts(peaks_ptr, temperature_ptr, row, parts, PARTS)
    k, p = limits(top_k_ptr, top_p_ptr, given, row, columns)
    bin = tl.arange(0, BINS)
    info_ptr += row * INFO
    if plain | ((k == columns) & (p == 1.0)):
        if part == 0:
            tl.store(info_ptr, 0)
        return
    before = tl.zeros([BINS], tl.int32)
    count = tl.zeros([BINS], tl.int32)
    for other in range(counted):
        some = tl.load(counts_ptr + (row * counted + other) * BINS + bin)
        before += tl.where(other < part, some, 0)
        count += some
    first, last, kth, above, listed, complete = _span(count, k, p, columns, LIST)
    state = tl.where(listed <= LIST, LISTED, TOO_MANY)
    # fewer columns than k can be drawn, and top-p is off
    state = tl.where((kth == BINS) & (p == 1.0), 0, state)
    if part == 0:
        tl.store(info_ptr, state)
        tl.store(info_ptr + 1, listed)
        tl.store(info_ptr + 2, kth)
        tl.store(info_ptr + 3, above)
        tl.store(info_ptr + 4, last)
        tl.store(info_ptr + 5, complete.to(tl.int32))
    if state != LISTED:
        return
    base = tl.sum(tl.where(((bin >= first) & (bin <= last)) | (bin == kth), before, 0), axis=0)
    row_ptr = logits_ptr + row * stride
    start, lane = part * chunk, tl.arange(0, BLOCK)
    head = tl.zeros([1], tl.int64)
    between = tl.zeros([1], tl.int64)
    for at in range(start, tl.minimum(start + chunk, columns), BLOCK):
        column = at + lane
        x = load_logits(row_ptr, column, columns)
        t = exponents(x, largest, scale)
        live = (t >= LEAST_T) & (column < columns)
        t = tl.where(live, t, 0.0)
        own = bin_of(t)
        if p < 1.0:
            weight = tl.where(live, weight_of(t), 0)
            head += tl.sum(tl.where(own < first, weight, 0), axis=0)
            between += tl.sum(tl.where((own > last) & (own < kth), weight, 0), axis=0)
        candidate = live & (((own >= first) & (own <= last)) | (own == kth))
        number = tl.sum(candidate.to(tl.int32), axis=0)
        if number > 0:
            place = base + tl.cumsum(candidate.to(tl.int32), axis=0) - 1
            tl.store(keys_ptr + row * LIST + place, key_of(x), mask=candidate)
            tl.store(places_ptr + row * LIST + place, column, mask=candidate)
            base += number
    masses_ptr += (row * counted + part) * 2 + tl.arange(0, 1)
    tl.store(masses_ptr, head)
    tl.store(masses_ptr + 1, between)


@triton.jit
def _above(row_ptr, key, largest, scale, columns, BLOCK: tl.constexpr):
    """How many columns of a row can be drawn and have keys above `key`, int64, and their mass."""
    lane = tl.arange(0, BLOCK)
    number = tl.sum(tl.zeros([BLOCK], tl.int64), axis=0)
    mass = number
    for at in range(0, columns, BLOCK):
        x = load_logits(row_ptr, at + lane, columns)
        t = exponents(x, largest, scale)
        among = (t >= LEAST_T) & (at + lane < columns) & (key_of(x) > key)
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
            middle = high - (high - cut) // 2
            number, _ = _above(row_ptr, middle - 1, largest, scale, columns, BLOCK)
            enough = number >= k
            cut = tl.where(enough, middle, cut)
            high = tl.where(enough, high, middle - 1)
    if p < 1.0:
        _, total = _above(row_ptr, cut - 1, largest, scale, columns, BLOCK)
        below = mass_below(p, total)
        high = top.to(tl.int64)
        while cut < high:
            middle = cut + (high - cut) // 2
            _, mass = _above(row_ptr, middle, largest, scale, columns, BLOCK)
            within = mass < below
            high = tl.where(within, middle, high)
            cut = tl.where(within, cut, middle + 1)
    return cut


@triton.jit
def _cut_of_list(key, bin, weight, there, k, p, kth, above, last, head, between):
    """The same from a list of candidates, of which `there` are real, and the masses of other columns."""
    cut = tl.full([], LEAST_KEY, tl.int64)
    if kth < BINS:
        among = there & (bin == kth)
        cut = tl.min(tl.where(among, key, 0x7FFFFFFF), axis=0).to(tl.int64)
        high = tl.max(tl.where(among, key, LEAST_KEY), axis=0).to(tl.int64)
        while cut < high:
            middle = high - (high - cut) // 2
            enough = tl.sum((among & (key >= middle)).to(tl.int32), axis=0) >= k - above
            cut = tl.where(enough, middle, cut)
            high = tl.where(enough, high, middle - 1)
    if p < 1.0:
        below = mass_below(p, head + between + tl.sum(tl.where(there & (key >= cut), weight, 0), axis=0))
        among = there & (bin <= last)
        low = tl.min(tl.where(among, key, 0x7FFFFFFF), axis=0).to(tl.int64) - 1
        high = tl.max(tl.where(among, key, LEAST_KEY), axis=0).to(tl.int64)
        while low < high:
            middle = low + (high - low) // 2
            within = head + tl.sum(tl.where(among & (key > middle), weight, 0), axis=0) < below
            high = tl.where(within, middle, high)
            low = tl.where(within, low, middle + 1)
        cut = tl.maximum(cut, low)
    return cut


@triton.jit(do_not_specialize=["parts", "counted", "given"])
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
    masses_ptr,
    keys_ptr,
    places_ptr,
    tokens_ptr,
    parts,
    counted,
    given,
    columns,
    stride,
    PARTS: tl.constexpr,
    COUNTED: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: completes its `info`, and draws its token where the candidates hold all that can be drawn.

    given: as `limits`, bit 2 min_p.
    """
    row = tl.program_id(0).to(tl.int64)
    info_ptr += row * INFO
    state = tl.load(info_ptr)
    if state == 0:
        tl.store(info_ptr + 6, 0)
        tl.store(info_ptr + 7, LEAST_KEY)
        return
    top, largest, scale, _ = row_facts(peaks_ptr, temperature_ptr, row, parts, PARTS)
    k, p = limits(top_k_ptr, top_p_ptr, given, row, columns)
    if state == TOO_MANY:
        cut = _cut_of_row(logits_ptr + row * stride, k, p, top, largest, scale, columns, BLOCK)
        tl.store(info_ptr + 6, 0)
        tl.store(info_ptr + 7, cut.to(tl.int32))
        return
    lane = tl.arange(0, LIST)
    there = lane < tl.load(info_ptr + 1)
    key = tl.load(keys_ptr + row * LIST + lane, mask=there, other=LEAST_KEY)
    t = tl.where(there, exponents(value_of(key), largest, scale), 0.0)
    part = tl.arange(0, COUNTED)
    masses_ptr += row * counted * 2 + part * 2
    head = tl.sum(tl.load(masses_ptr, mask=part < counted, other=0), axis=0)
    between = tl.sum(tl.load(masses_ptr + 1, mask=part < counted, other=0), axis=0)
    kth, above, last = tl.load(info_ptr + 2), tl.load(info_ptr + 3), tl.load(info_ptr + 4)
    cut = _cut_of_list(key, bin_of(t), weight_of(t), there, k, p, kth, above, last, head, between)
    complete = tl.load(info_ptr + 5)
    tl.store(info_ptr + 6, complete)
    tl.store(info_ptr + 7, cut.to(tl.int32))
    if complete != 0:
        least = LEAST_T
        if given & 4:
            least = least_t(tl.load(min_p_ptr + row))
        column = tl.load(places_ptr + row * LIST + lane, mask=there, other=0)
        keep = there & (key >= cut) & (t >= least)
        race = race_of(words_at(column, tl.load(seeds_ptr + row), tl.load(offsets_ptr + row)), t)
        best = tl.min(tl.where(keep, packed(race, column), 0x7FFFFFFFFFFFFFFF), axis=0)
        tl.store(tokens_ptr + row, (best & 0x7FFFFFFF).to(tl.int32))
