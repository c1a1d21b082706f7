"""How rows are split over programs in the norm kernels."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

ONE_PASS = 16384
"""Widest row a program holds in registers at once; wider rows are read in steps, several times."""

STEP = 8192
"""Columns of a step through a wider row."""

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
def row_tile(
    lanes: int,
    width: int,
    few: bool,
    group: int = 0,
    quant: str = "none",
    second: bool = False,
    layer: bool = False,
) -> RowTile:
    """The tile for rows of `width` columns on a machine with `lanes` lanes a warp; few: at most `FEW` rows.

    group: that many neighbours share a scale (0: none such). quant: as in the kernels. second: a residual or a gate is
    read too. layer: layer norm. Whole rows while they fit, several narrow ones a program.

    Measured on an H200 at 4096, 7168 and 8192 columns. Few rows: 8 columns a lane, all loads at once. Many rows:
    bandwidth wants few lanes with many loads each, most so where codes need more arithmetic a byte.
    """
    size = next_power_of_two(group or width)
    groups = next_power_of_two(width // group) if group else 1
    if groups * size > ONE_PASS:
        groups, size = (max(1, STEP // size), size) if group else (1, STEP)
    group, columns = group or size, groups * size
    rows = max(1, 1024 // columns) if groups * group >= width and not few else 1
    if few:
        most, each = 32 if quant == "none" and not (layer or second) else 16, 8
    elif quant in ("static", "group") or second:
        most, each = 4, 32
    else:
        most, each = 8, 32 if quant == "row" else 16
    # more than 64 columns a lane do not fit its registers
    warps = max(min(most, rows * columns // (lanes * each)), columns // (lanes * 64), 1)
    vector = 16 if quant in ("static", "group") or (quant == "row" and not few) else 8
    early = few or second or not layer
    return RowTile(rows, group, groups, size, math.gcd(width, vector), early, min(warps, 1024 // lanes))
