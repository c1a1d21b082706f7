"""How heads of tokens are split over programs where they are rotated."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .norm import next_power_of_two

LANES = 128
"""Lanes of a program."""

EACH = 16
"""Columns a lane holds: of 2-byte types two accesses of 16 bytes, a half of a head each."""


@dataclass(frozen=True)
class HeadTile:
    """A program takes `heads` heads of `tokens` tokens, `size` columns of each; all are powers of two. lanes: how many
    it is for.
    """

    tokens: int
    heads: int
    size: int
    lanes: int

    def programs(self, tokens: int, heads: int) -> int:
        return -(-tokens // self.tokens) * -(-heads // self.heads)


@functools.cache
def head_tile(heads: int, width: int, scattered: bool = False) -> HeadTile:
    """The tile for tokens of `heads` heads of `width` columns. It does not follow the number of tokens: one compilation
    serves all, and sums of a head are added in one order in any batch.

    scattered: columns are accessed one by one; every access has a mask and an address of its own then, and a lane holds
    half as many.
    """
    size, each = next_power_of_two(width), EACH // 2 if scattered else EACH
    most = max(1, LANES * each // size)
    across = min(next_power_of_two(max(heads, 1)), most)
    tokens = most // across
    return HeadTile(tokens, across, size, max(1, tokens * across * size // each))


def uneven(width: int, rotary: int) -> bool:
    """Whether the compiler cannot know that halves of what is turned, and heads, are whole numbers of wide accesses."""
    return rotary % 16 != 0 or width % 16 != 0


def warps(wave: int, *tiles: HeadTile) -> int:
    """Warps (or waves) of `wave` lanes for the largest of the tiles."""
    return min(max(1, max(t.lanes for t in tiles) // wave), 1024 // wave)
