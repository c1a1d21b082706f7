"""How rows are split over programs in the norm kernels."""

from __future__ import annotations

from dataclasses import dataclass

from aiter_ops.core.platforms import Platform

ONE_PASS = 16384
"""Widest row a program holds in registers at once; wider rows are read in steps, twice."""


@dataclass(frozen=True)
class RowTile:
    """rows: rows a program does at once; block: columns it holds; num_warps: warps (or waves) of a program."""

    rows: int
    block: int
    num_warps: int


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length() if n > 1 else 1


def row_tile(machine: Platform, width: int) -> RowTile:
    """Whole rows while they fit; several narrow rows per program; enough warps for 16-byte loads of all columns."""
    block = min(next_power_of_two(width), ONE_PASS)
    rows = max(1, 1024 // block)
    lanes = machine.wave_size or 32
    warps = max(1, min(16, rows * block // (lanes * 16)))
    return RowTile(rows, block, warps)
