"""Device functions that find a token's place in a paged cache and write rows there.

Layouts are those of `aiter_ops.ops.kv_cache.pages`. X is 0 for ``nhd``, else the neighbours that the shuffled layout
keeps together: columns of a key, places of a value. Of a cache there are four strides: by_block, by_place (of a
shuffled value: between X places; of a shuffled key X), by_head, and by_run (of a shuffled key: between X columns).
"""

import triton
import triton.language as tl

from aiter_ops.providers.triton.common import encode, inverse_of
from aiter_ops.providers.triton.division import divided
from aiter_ops.providers.triton.quant.codes import divide


@triton.jit
def find(slot_ptr, token, slots, block_size):
    """Whether the tokens have a slot, its block and its place there, in 64 bits. A cache has fewer than 2^31 slots."""
    slot = tl.load(slot_ptr + token, mask=token < slots, other=-1).to(tl.int32)
    block, place = divided(slot & 0x7FFFFFFF, block_size)  # slots below 0 are not used
    return slot >= 0, block.to(tl.int64), place.to(tl.int64)


@triton.jit
def row_at(block, place, head, by_block, by_place, by_head, KEY: tl.constexpr, X: tl.constexpr):
    """Where the rows of heads [1, HEADS, 1] of tokens [TOKENS] begin."""
    at = place * by_place
    if X > 0:
        at = place * X if KEY else (place // X) * by_place + place % X
    return (block * by_block + at)[:, None, None] + head * by_head


@triton.jit
def column_at(col, by_run, KEY: tl.constexpr, X: tl.constexpr):
    """Where a column lies in its row."""
    if X == 0:
        return col
    elif KEY:
        return (col // X) * by_run + col % X
    else:
        return col * X


@triton.jit
def read_scale(scale_ptr, head, heads, step, SCALED: tl.constexpr):
    """SCALED: ``one`` scale, one of each head [1, HEADS, 1] (`step` apart), or ``none``, which is 1."""
    if SCALED == "heads":
        return tl.load(scale_ptr + head * step, mask=head < heads, other=1.0)
    elif SCALED == "one":
        return tl.load(scale_ptr)
    else:
        return 1.0


@triton.jit
def put(x, cache_ptr, at, inside, scale, SCALED: tl.constexpr, TOP: tl.constexpr):
    """Store a tile of values as they are, or as the cache's codes of x / scale (TOP: the largest code)."""
    dtype: tl.constexpr = cache_ptr.dtype.element_ty
    if TOP > 0:
        x = x.to(tl.float32)
        if SCALED != "none":
            x = divide(x, scale, inverse_of(scale), True)
        tl.store(cache_ptr + at, encode(x, 1.0, dtype, TOP, True), mask=inside)
    else:
        tl.store(cache_ptr + at, x, mask=inside)


@triton.jit
def copy_rows(
    x_ptr, cache_ptr, scale_ptr, token, head, heads, has_slot, block, place, by_token, by_head, by_block, by_place,
    by_cache_head, by_run, scale_step, D: tl.constexpr, SIZE: tl.constexpr, KEY: tl.constexpr, X: tl.constexpr,
    SCALED: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """Rows of D columns of x into the cache, for the tokens that have a slot."""
    col = tl.arange(0, SIZE)[None, None, :]
    inside = has_slot[:, None, None] & (head < heads) & (col < D)
    x = tl.load(x_ptr + token.to(tl.int64)[:, None, None] * by_token + head * by_head + col, mask=inside, other=0.0)
    to = row_at(block, place, head, by_block, by_place, by_cache_head, KEY, X) + column_at(col, by_run, KEY, X)
    scale = read_scale(scale_ptr, head, heads, scale_step, SCALED)
    if X > 0 and not KEY:
        # tokens last, so that lanes beside each other have tokens beside each other, as shuffled values lie
        x, to, inside = tl.permute(x, (1, 2, 0)), tl.permute(to, (1, 2, 0)), tl.permute(inside, (1, 2, 0))
        if SCALED == "heads":
            scale = tl.permute(scale, (1, 2, 0))
    put(x, cache_ptr, to, inside, scale, SCALED, TOP)
