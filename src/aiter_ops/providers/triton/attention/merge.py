"""The merge of attention over two parts of the keys: a program does a few rows of one head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.division import MOST, divided_by, inverse
from aiter_ops.providers.triton.launch import Launcher, machine
from aiter_ops.providers.triton.tiles.attention import merge_tile

from .softmax import inverse_total

FREE = ("tokens", "heads", "by_heads", "heads_shift")
"""The first numbers of the kernel: what no compilation follows from."""


@triton.jit(do_not_specialize=FREE)
def merge_kernel(
    a_ptr,
    a_lse_ptr,
    b_ptr,
    b_lse_ptr,
    out_ptr,
    lse_ptr,
    tokens,
    heads,
    by_heads,
    heads_shift,
    a_row,
    a_head,
    b_row,
    b_head,
    a_lse_head,
    a_lse_row,
    b_lse_head,
    b_lse_row,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """a, b [tokens, heads, SIZE] with the strides given and unit stride in a head; out and lse contiguous. by_heads,
    heads_shift: `division.inverse` of heads.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    flat = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, head = divided_by(flat, heads, by_heads, heads_shift)
    there = row < tokens
    flat, row, head = flat.to(tl.int64), row.to(tl.int64), head.to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    inside = there[:, None]
    if BLOCK != SIZE:
        inside = inside & (column < SIZE)
    a_lse = tl.load(a_lse_ptr + head * a_lse_head + row * a_lse_row, mask=there, other=0.0)
    b_lse = tl.load(b_lse_ptr + head * b_lse_head + row * b_lse_row, mask=there, other=0.0)
    a = tl.load(a_ptr + (row * a_row + head * a_head)[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + (row * b_row + head * b_head)[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    top = tl.maximum(a_lse, b_lse, propagate_nan=tl.PropagateNan.ALL)
    base = tl.where(top == float("-inf"), 0.0, top)
    a_weight, b_weight = tl.exp2((a_lse - base) * LOG2_E), tl.exp2((b_lse - base) * LOG2_E)
    total = a_weight + b_weight
    over = inverse_total(total)
    a_weight, b_weight = (a_weight * over)[:, None], (b_weight * over)[:, None]
    # a part without keys adds nothing, whatever it holds
    out = a_weight * tl.where(a_weight == 0.0, 0.0, a) + b_weight * tl.where(b_weight == 0.0, 0.0, b)
    tl.store(out_ptr + (flat * SIZE)[:, None] + column, out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + head * tokens + row, base + tl.log(total), mask=there)


_merge = Launcher(merge_kernel, len(FREE))


def _unit(t: Tensor) -> Tensor:
    return t if t.stride(2) == 1 else t.contiguous()


def _refusal(target: Platform) -> Predicate:
    def predicate(out_a: Tensor, *rest: Tensor) -> str | None:
        rows = out_a.shape[0] * out_a.shape[1]
        return f"takes fewer than {MOST} rows of tokens and heads; they are {rows}" if rows >= MOST else None

    return predicate


@PROVIDER.implements("merge_attn_states", refuses=_refusal, batch_invariant=True)
def merge_attn_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _unit(out_a), _unit(out_b)
    tokens, heads, size = a.shape
    out = a.new_empty(a.shape)
    lse = a.new_empty((heads, tokens), dtype=torch.float32)
    tile = merge_tile(machine(), size)
    numbers = (tokens, heads, *inverse(heads), *a.stride()[:2], *b.stride()[:2], *lse_a.stride(), *lse_b.stride())
    grid = -(-tokens * heads // tile.rows)
    _merge(grid, (a, lse_a, b, lse_b, out, lse), numbers, (size, tile.block, tile.rows), tile.num_warps)
    return out, lse
