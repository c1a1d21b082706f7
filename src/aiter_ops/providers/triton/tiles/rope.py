"""How heads of tokens are split over programs where they are rotated."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .norm import next_power_of_two

COLUMNS = 2048
"""Columns a program holds, of all its heads and tokens together."""

EACH = 16
"""Columns a lane holds: of 2-byte types two accesses of 16 bytes, a half of a head each."""


@dataclass(frozen=True)
class HeadTile:
    """A program takes `heads` heads of `tokens` tokens, `size` columns of each; all are powers of two."""

    tokens: int
    heads: int
    size: int

    def programs(self, tokens: int, heads: int) -> int:
        return -(-tokens // self.tokens) * -(-heads // self.heads)


@functools.cache
def head_tile(heads: int, width: int, scattered: bool = False) -> HeadTile:
    """The tile for tokens of `heads` heads of `width` columns. It does not follow the number of tokens: one compilation
    serves all, and sums of a head are added in one order in any batch.

    scattered: columns are accessed one by one; every access has a mask and an address of its own then, and a lane holds
    half as many.
    """
    size = next_power_of_two(width)
    most = max(1, (COLUMNS // 2 if scattered else COLUMNS) // size)
    across = min(next_power_of_two(max(heads, 1)), most)
    return HeadTile(most // across, across, size)


def uneven(width: int, rotary: int) -> bool:
    """Whether the compiler cannot know that halves of what is turned, and heads, are whole numbers of wide accesses."""
    return rotary % 16 != 0 or width % 16 != 0


def warps(lanes: int, *tiles: HeadTile) -> int:
    """Warps (or waves) for the largest of the tiles."""
    columns = max(t.tokens * t.heads * t.size for t in tiles)
    return min(max(1, columns // (lanes * EACH)), 1024 // lanes)
