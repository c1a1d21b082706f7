"""How rows of values are split over programs where they are written into a cache."""

from __future__ import annotations

from .rope import HeadTile, head_tile


def value_tile(heads: int, width: int, layout: str) -> HeadTile:
    """The tile for `heads` heads of `width` columns a token.

    A shuffled cache keeps a column of neighbouring places together, so a program takes one head of more tokens. Widths
    that are no multiple of 16 are accessed column by column.
    """
    return head_tile(heads if layout == "nhd" else 1, width, width % 16 != 0)
