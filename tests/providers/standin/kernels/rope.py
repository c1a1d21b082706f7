"""aiter/ops/triton/rope/rope.py, for packed tokens, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .machine import Fault, Machine, NotPlayed, Unsupported, check, function


def power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def turned(x: Tensor, cos: Tensor, sin: Tensor, neox: bool) -> Tensor:
    """One head, whole: pairs (i, i + width/2), or (2i, 2i + 1). Products in the wider type of the two, as Triton has them."""
    half = len(x) // 2
    a = x[:half] if neox else x[::2]
    b = x[half:] if neox else x[1::2]
    first, second = a * cos - b * sin, b * cos + a * sin
    both = torch.cat((first, second)) if neox else torch.stack((first, second), -1).flatten()
    return both.to(x.dtype)


def _turn(
    x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, style: int, front: bool, nope_first: bool, apart: bool
) -> tuple[Tensor, Tensor]:
    heads, others, width = x.shape[1], y.shape[1], x.shape[2]
    check(Unsupported, x.shape[0] == y.shape[0] and y.shape[2] == width, "tokens and widths of both")
    check(Unsupported, others > 0 and heads % others == 0, "QH should be multiple of KH")
    check(NotPlayed, not apart, "transpose_output is not played")
    if front:
        turn = width if cos.shape[-1] == width // 2 else width // 2 if cos.shape[-1] == width // 4 else 0
    else:
        turn = width if cos.shape[-1] == width else width // 2 if cos.shape[-1] == width // 2 else 0
    check(Fault, turn > 0, "columns of cos beyond the last are read")
    check(Unsupported, power_of_two(width), "arange's range must be a power of 2")
    check(Fault, cos.stride() == sin.stride() and cos.shape == sin.shape, "sin is read with the strides of cos")
    check(Fault, heads != others or power_of_two(heads), "heads beyond the last are turned too")
    check(Fault, x.is_floating_point() and rows.shape[0] == x.shape[0], "a position a token")
    first = width - turn if nope_first else 0
    for tensor in (x, y):
        for t in range(len(tensor)):
            at = int(rows[t])
            check(Fault, 0 <= at < len(cos), "a position outside the table")
            for h in range(tensor.shape[1]):
                head = tensor[t, h, first : first + turn]
                tables = (cos[at], sin[at]) if front else (_whole(cos[at], style), _whole(sin[at], style))
                head.copy_(turned(head, *tables, style == 0))
    return x, y


def _whole(table: Tensor, style: int) -> Tensor:
    """Of a table with a column for every column of a head, those of the pairs."""
    return table[: len(table) // 2] if style == 0 else table[::2]


@function
def rope_cached_thd_positions_2c_fwd_inplace(
    m: Machine,
    x: Tensor,
    y: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    rotate_style: int,
    reuse_freqs_front_part: bool,
    nope_first: bool,
    transpose_output: bool,
) -> tuple[Tensor, Tensor]:
    check(Unsupported, rotate_style in (0, 1), "rotate_style")
    return _turn(x, y, cos, sin, positions, rotate_style, reuse_freqs_front_part, nope_first, transpose_output)


@function
def rope_cached_thd_positions_offsets_2c_fwd_inplace(
    m: Machine,
    x: Tensor,
    y: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    offsets: Tensor,
    rotate_style: int,
    reuse_freqs_front_part: bool,
    nope_first: bool,
    transpose_output: bool,
) -> tuple[Tensor, Tensor]:
    check(Unsupported, rotate_style in (0, 1), "rotate_style")
    check(Fault, offsets.stride() == positions.stride(), "offsets are read with the strides of positions")
    rows = positions + offsets
    return _turn(x, y, cos, sin, rows, rotate_style, reuse_freqs_front_part, nope_first, transpose_output)
