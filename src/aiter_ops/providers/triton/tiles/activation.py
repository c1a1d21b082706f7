"""How the gated activations are dealt to programs."""

from __future__ import annotations

from aiter_ops.core.platforms import Platform

from .quant import Tile, piece_tile


def gated_tile(machine: Platform, rows: int, width: int, bytes_each: int) -> Tile:
    """Pieces of the result's rows; every column of it reads two elements."""
    return piece_tile(machine, rows, width, 2 * bytes_each)
