"""Tiles of the products with MXFP4 weights and of the batched ones, by architecture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from aiter_ops.core.platforms import Platform
from aiter_ops.providers.triton.tiles.quant import next_power_of_two

FIXED = 32
"""Rows of a tile where no tile may follow the number of rows."""


@dataclass(frozen=True)
class Tile:
    """rows of x and columns of the result a program makes, warps (or waves), stages of the pipeline over K.

    turned: the weight is the left factor of the matrix instructions: NVIDIA's warp-group instructions have 64 rows,
    which a weight fills and a few tokens do not.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int
    turned: bool


def _rows(machine: Platform, m: int, fixed: bool, most: int) -> int:
    least = 8 if machine.vendor == "nvidia" else 16
    return FIXED if fixed else max(least, min(next_power_of_two(m), most))


@lru_cache(4096)
def fp8_batch_tile(machine: Platform, batch: int, m: int, n: int, groups: int, fixed: bool) -> Tile:
    """Bytes of the weight come first: columns enough for two programs a compute unit, and every group in flight.

    fixed: the same for any number of rows.
    """
    nvidia = machine.vendor == "nvidia"
    # on gfx120x Triton converts to FP8 in many instructions with masks, which spread over more warps fit registers
    small = machine.arch.startswith("gfx120")
    rows = _rows(machine, m, fixed, 32 if small else 64)
    columns = 128
    tiles = batch * (1 if fixed else -(-m // rows))
    while columns > 32 and tiles * -(-n // columns) < 2 * (machine.compute_units or 128):
        columns //= 2
    stages = min(groups + 1, 5) if nvidia else 1 if small else min(groups, 2)
    return Tile(rows, columns, 8 if small else 4, stages, nvidia)
