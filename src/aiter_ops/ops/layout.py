"""Arrangements of weights in memory, as exact permutations with exact inverses."""

from __future__ import annotations

from torch import Tensor


def shuffled(w: Tensor, layout: str) -> Tensor:
    """w [..., N, K] in the order of `layout`, under its own shape."""
    if layout == "plain":
        return w
    piece = 16 // w.element_size()
    tiles = w.unflatten(-1, (-1, 2, piece)).unflatten(-4, (-1, 16))
    return tiles.movedim(-4, -2).contiguous().view(w.shape)


def unshuffled(w: Tensor, layout: str) -> Tensor:
    """The inverse of `shuffled`."""
    if layout == "plain":
        return w
    *lead, rows, columns = w.shape
    piece = 16 // w.element_size()
    tiles = w.contiguous().view(*lead, rows // 16, columns // (2 * piece), 2, 16, piece)
    return tiles.movedim(-2, -4).reshape(w.shape)
