"""Device functions that turn pairs of columns; the kernels of the families rope and kv_cache are made of them.

A tile is [TOKENS, HEADS, columns]. Of a head, R columns are turned; a pair is two of them, HALF the power of two that
holds R/2. Pairs are read and written as they lie: two runs of R/2 columns where NEOX, else one run of R columns that is
taken apart in registers.
"""

import triton
import triton.language as tl

from aiter_ops.providers.triton.common import widen
from aiter_ops.providers.triton.division import divided


@triton.jit
def place_in_grid(program, heads, TOKENS: tl.constexpr, HEADS: tl.constexpr):
    """The tokens [TOKENS] and heads [1, HEADS, 1], in 64 bits, of a program; all heads of some tokens before the next
    tokens. A tile of several heads of several tokens has all heads (`head_tile`).
    """
    if TOKENS > 1 and HEADS > 1:
        first_token, first_head = program, 0
    else:
        blocks = tl.cast(heads + HEADS - 1, tl.uint32) // HEADS  # a signed division would take care of signs
        first_token, block = divided(program, blocks)
        first_head = block * HEADS
    token = first_token * TOKENS + tl.arange(0, TOKENS)
    head = first_head + tl.arange(0, HEADS)
    return token, head.to(tl.int64)[None, :, None]


@triton.jit
def read_pairs(x_ptr, at, here, R: tl.constexpr, HALF: tl.constexpr, NEOX: tl.constexpr):
    """Both members of R/2 pairs from x_ptr + at [.., .., 1] on, fp32; what is not `here` is 0."""
    if NEOX:
        col = tl.arange(0, HALF)[None, None, :]
        inside = here & (col < R // 2)
        a = tl.load(x_ptr + at + col, mask=inside, other=0.0)
        b = tl.load(x_ptr + at + R // 2 + col, mask=inside, other=0.0)
        return widen(a), widen(b)
    else:
        col = tl.arange(0, 2 * HALF)[None, None, :]
        x = widen(tl.load(x_ptr + at + col, mask=here & (col < R), other=0.0))
        a, b = tl.split(tl.reshape(x, [x.shape[0], x.shape[1], HALF, 2]))
        return a, b


@triton.jit
def together(a, b):
    """Pairs of neighbours as one run of columns."""
    return tl.reshape(tl.join(a, b), [a.shape[0], a.shape[1], 2 * a.shape[2]])


@triton.jit
def write_pairs(x_ptr, at, here, a, b, R: tl.constexpr, HALF: tl.constexpr, NEOX: tl.constexpr):
    """The inverse of `read_pairs`."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    if NEOX:
        col = tl.arange(0, HALF)[None, None, :]
        inside = here & (col < R // 2)
        tl.store(x_ptr + at + col, a.to(dtype), mask=inside)
        tl.store(x_ptr + at + R // 2 + col, b.to(dtype), mask=inside)
    else:
        col = tl.arange(0, 2 * HALF)[None, None, :]
        tl.store(x_ptr + at + col, together(a, b).to(dtype), mask=here & (col < R))


@triton.jit
def _row(table_ptr, row, stride, here, R: tl.constexpr, HALF: tl.constexpr):
    col = tl.arange(0, HALF)[None, None, :]
    inside = here & (col < R // 2)
    at = table_ptr + row.to(tl.int64)[:, None, None] * stride + col
    return widen(tl.load(at, mask=inside, other=0.0)), widen(tl.load(at + R // 2, mask=inside, other=0.0))


@triton.jit
def read_angles(
    table_ptr, position_ptr, offset_ptr, token, tokens, stride, here, R: tl.constexpr, HALF: tl.constexpr,
    OFFSETS: tl.constexpr,
):  # fmt: skip
    """cos and sin at the positions of the tokens, fp32. `here` [TOKENS, HEADS, 1]: every head reads its own, which the
    first-level cache serves; to hand them from lane to lane would take a barrier.
    """
    row = tl.load(position_ptr + token, mask=token < tokens, other=0).to(tl.int64)
    if OFFSETS:
        row += tl.load(offset_ptr + token, mask=token < tokens, other=0).to(tl.int64)
    return _row(table_ptr, row, stride, here, R, HALF)


@triton.jit
def read_angles_of_three(
    table_ptr, position_ptr, token, tokens, axis_stride, stride, first, second, here, R: tl.constexpr,
    HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """The same with three positions a token, position_ptr [3, tokens]; first, second: pairs of time and of height, or,
    INTERLEAVED, of height and of width.
    """
    at = position_ptr + token
    time = tl.load(at, mask=token < tokens, other=0)
    height = tl.load(at + axis_stride, mask=token < tokens, other=0)
    width = tl.load(at + 2 * axis_stride, mask=token < tokens, other=0)
    cos, sin = _row(table_ptr, time, stride, here, R, HALF)
    cos_h, sin_h = _row(table_ptr, height, stride, here, R, HALF)
    cos_w, sin_w = _row(table_ptr, width, stride, here, R, HALF)
    pair = tl.arange(0, HALF)[None, None, :]
    if INTERLEAVED:
        of_height = (pair % 3 == 1) & (pair < 3 * first)
        of_width = (pair % 3 == 2) & (pair < 3 * second)
    else:
        of_height = (pair >= first) & (pair < first + second)
        of_width = pair >= first + second
    cos = tl.where(of_height, cos_h, tl.where(of_width, cos_w, cos))
    sin = tl.where(of_height, sin_h, tl.where(of_width, sin_w, sin))
    return cos, sin


@triton.jit
def turned(a, b, cos, sin):
    """(a, b) by the angle."""
    return a * cos - b * sin, b * cos + a * sin
