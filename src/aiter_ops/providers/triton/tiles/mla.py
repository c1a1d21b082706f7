"""Tiles of MLA decoding, by architecture family: rows and keys of a program, and over how many a context is split."""

from __future__ import annotations

from dataclasses import dataclass

from aiter_ops.core.platforms import Platform

from .gemm import Options, family
from .quant import next_power_of_two

WIDEST_VALUE = 512
"""Columns of a value that a program holds sums of."""

SPLITS_WHEN_FIXED = 8
"""Where a result may not depend on the batch."""

LEAST_STEPS = 4
"""A split has at least so many steps, were the longest context all of the cache's pages."""


@dataclass(frozen=True)
class DecodeTile:
    """rows: heads × queries of a program, at most; step: keys of a step. per_unit: programs a compute unit is given."""

    rows: int
    step: int
    num_warps: int
    num_stages: int
    halves: int = 1
    per_unit: int = 1
    options: Options = ()


T = DecodeTile
_MFMA16 = (("matrix_instr_nonkdim", 16),)
TILES: dict[str, dict[tuple[int, int], T]] = {
    "sm90": {
        (2, 2): T(64, 64, 8, 2, halves=2),
        (2, 1): T(64, 64, 8, 2, halves=2),
        (1, 1): T(64, 64, 8, 2, halves=2),
        (4, 4): T(16, 16, 8, 1),
    },
    "gfx942": {
        (2, 2): T(32, 16, 4, 1, options=_MFMA16),
        (2, 1): T(32, 32, 4, 1, options=_MFMA16),
        (1, 1): T(32, 32, 4, 1, options=_MFMA16),
        (4, 4): T(16, 16, 4, 1, options=_MFMA16),
    },
    "gfx12": {
        (2, 2): T(16, 16, 8, 1),
        (2, 1): T(16, 32, 8, 1),
        (1, 1): T(16, 32, 8, 1),
        (4, 4): T(16, 16, 8, 1),
    },
}
TILES["gfx950"] = TILES["gfx90a"] = TILES["gfx942"]
TILES["gfx11"] = TILES["other"] = TILES["gfx12"]
"""By family, and bytes of an element of q and of the cache."""


def decode_tile(machine: Platform, q_bytes: int, kv_bytes: int, rows: int) -> DecodeTile:
    """The tile for sequences of at most `rows` rows."""
    tiles = TILES[family(machine)]
    tile = tiles.get((q_bytes, kv_bytes), tiles[4, 4])
    few = max(16, next_power_of_two(rows))
    return tile if few >= tile.rows or machine.vendor == "nvidia" else T(few, *tuple(vars(tile).values())[1:])


def split_count(machine: Platform, tile: DecodeTile, batch: int, tiles: int, most_keys: int, fixed: bool) -> int:
    """Over how many programs each context is split. most_keys: the longest it can be. fixed: see `SPLITS_WHEN_FIXED`."""
    if fixed:
        return SPLITS_WHEN_FIXED
    wanted = (machine.compute_units or 128) * tile.per_unit // max(batch * tiles, 1)
    return max(min(wanted, most_keys // (tile.step * LEAST_STEPS)), 1)
