"""How the gated activations are dealt to programs."""

from __future__ import annotations

from aiter_ops.core.platforms import Platform

from .quant import Tile, piece_tile


def gated_tile(machine: Platform, rows: int, width: int, element: int) -> Tile:
    """Pieces of the result's rows; every column of it reads two elements of `element` bytes."""
    return piece_tile(machine, rows, width, element, 2)
