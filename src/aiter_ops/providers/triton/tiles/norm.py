"""How rows are split over programs in the norm kernels."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

ONE_PASS = 16384
"""Widest row a program holds in registers at once; wider rows are read in steps, several times."""

LARGEST_GROUP = 32768
"""Widest scale group: a group is held whole."""

FEW = 256
"""Up to so many rows a launch waits for memory more than it is short of bandwidth."""


@dataclass(frozen=True)
class RowTile:
    """rows: rows a program does at once; groups × size: columns it holds; group: columns that share a scale (all of
    them where no group does); vector: columns a lane takes together, at most; early: weights are read before the sum; num_warps: warps (or waves) of a program.
    """

    rows: int
    group: int
    groups: int
    size: int
    vector: int
    early: bool
    num_warps: int

    @property
    def constants(self) -> tuple[int, int, int, int, int, bool]:
        return self.group, self.rows, self.groups, self.size, self.vector, self.early


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length() if n > 1 else 1


@functools.cache
def row_tile(lanes: int, width: int, few: bool, group: int = 0, quant: str = "none") -> RowTile:
    """The tile for rows of `width` columns on a machine with `lanes` lanes a warp; few: at most `FEW` rows.

    group: that many neighbours share a scale (0: none such). Whole rows while they fit, several narrow ones a program.
    """
    if group:
        size = next_power_of_two(group)
        groups = min(next_power_of_two(width // group), max(1, ONE_PASS // size))
    else:
        groups, size = 1, min(next_power_of_two(width), ONE_PASS)
        group = size
    columns = groups * size
    whole = groups * group >= width
    rows = max(1, 1024 // columns) if whole and not few else 1
    warps = max(1, min(16, rows * columns // (lanes * (8 if few else 16))))
    return RowTile(rows, group, groups, size, math.gcd(width, 8), few, min(warps, 1024 // lanes))
