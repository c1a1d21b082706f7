"""Device functions that compare scores exactly, and choose."""

import triton
import triton.language as tl

from aiter_ops.providers.triton.common import times_sigmoid

EXCLUDED = tl.constexpr(-(2**31))
"""As in the references: below the key of every number."""


@triton.jit
def key_of(x):
    """int32 in the order of fp32 x: NaN largest, both zeros alike."""
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(bits << 1 == 0, 0, bits)
    return tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """The fp32 number of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def short_key_of(x):
    """int32 from 1 to 65535 in the order of x, bf16 or fp16: NaN largest, both zeros alike. 0 is below every number."""
    bits = x.to(tl.int16, bitcast=True).to(tl.int32)
    bits = tl.where(bits & 0x7FFF == 0, 0, bits)
    wide = x.to(tl.float32)
    return tl.where(wide == wide, bits ^ ((bits >> 31) & 0x7FFF), 0x7FFF) + 0x8000


@triton.jit
def two_largest(a, b, c, d):
    """Of (a, b) and (c, d), each falling, the two largest, falling."""
    return tl.maximum(a, c), tl.maximum(tl.minimum(a, c), tl.maximum(b, d))


@triton.jit
def largest(x):
    """The largest of each row of x [ROWS, COUNT, SIZE]; NaN is not looked for.

    Axis by axis: in a tile made flat the lanes of a row can be no neighbours, and Triton 3.6 then mixes rows.
    """
    return tl.max(tl.max(x, axis=2), axis=1)


@triton.jit
def keep_best(best, KEPT: tl.constexpr):
    """Which KEPT of the numbers [ROWS, COUNT] are the largest, of equal ones the first."""
    count: tl.constexpr = best.shape[1]
    place = tl.arange(0, count)
    mine, other = best[:, :, None], best[:, None, :]
    ahead = (other > mine) | ((other == mine) & (place[None, None, :] < place[None, :, None]))
    return tl.sum(ahead.to(tl.int32), axis=2) < KEPT


@triton.jit
def choose_unique(keys, K: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr):
    """The K largest of distinct uint32 keys [ROWS, COUNT, SIZE], falling, in a tile [ROWS, SLOTS].

    keys - best, modulo 2^32, puts `best` and all above it below all that is still to be had.
    """
    slot = tl.arange(0, SLOTS)[None, :]
    best = tl.zeros([ROWS], tl.uint32)
    chosen = tl.zeros([ROWS, SLOTS], tl.uint32)
    for j in range(K):
        best += largest(keys - best[:, None, None])
        chosen = tl.where(slot == j, best[:, None], chosen)
    return chosen


@triton.jit
def choose(keys, place, K: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr):
    """Places of the K largest int32 keys [ROWS, COUNT, SIZE], ties to the lower place, in a tile [ROWS, SLOTS].

    place: [1, COUNT, SIZE], rising.
    """
    slot = tl.arange(0, SLOTS)[None, :]
    chosen = tl.zeros([ROWS, SLOTS], tl.int32)
    for j in range(K):
        at = -largest(tl.where(keys == largest(keys)[:, None, None], -place, EXCLUDED))
        keys = tl.where(place == at[:, None, None], EXCLUDED, keys)
        chosen = tl.where(slot == j, at[:, None], chosen)
    return chosen


@triton.jit
def score_of(x, SCORING: tl.constexpr):
    """The sigmoid, or sqrt(softplus), of fp32 x."""
    if SCORING == "sigmoid":
        return times_sigmoid(1.0, x)
    else:
        # log(1 + u) to the last units, also where 1 + u keeps few bits of u
        u = tl.exp(-tl.abs(x))
        w = 1.0 + u
        rest = tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
        return tl.sqrt(tl.maximum(x, 0.0) + rest)
