"""Tiles of attention over paged caches, by architecture family, and over how many programs a context is split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from aiter_ops.core.platforms import Platform
from aiter_ops.ops.attention.paged_plan import MOST_ROWS

from .gemm import Options, family

WIDEST = 256
"""Largest head size."""

LEAST_ROWS = 16
"""Rows of the smallest product of the matrix units."""

MOST_SPLITS = 128
FIXED_SPLITS = 8
"""Parts of a context where no result may depend on the rest of the batch."""

UNITS = 128
"""Compute units of a machine whose number is not known."""


@dataclass(frozen=True)
class PagedTile:
    """rows (query rows times heads of a kv head) × keys of a step. num_stages: steps in flight."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    options: Options = ()


class _Family(NamedTuple):
    """few: keys of a step, warps and stages of tiles of 16 to 64 rows; many: rows, keys, warps, stages of larger ones;
    both for 2-byte caches and a head size of 128. resident: programs a compute unit holds at the same time.
    """

    few: tuple[int, int, int]
    many: tuple[int, int, int, int]
    resident: int
    options: Options = ()


_CDNA_OPTIONS = (("matrix_instr_nonkdim", 16),)
FAMILIES: dict[str, _Family] = {
    "sm90": _Family((64, 4, 3), (128, 64, 8, 3), 2),
    "gfx942": _Family((64, 4, 2), (128, 64, 8, 2), 2, _CDNA_OPTIONS),
    "gfx950": _Family((64, 4, 2), (128, 64, 8, 2), 2, _CDNA_OPTIONS),
    "gfx90a": _Family((64, 4, 2), (128, 64, 8, 2), 2, _CDNA_OPTIONS),
    "gfx11": _Family((32, 4, 2), (64, 32, 8, 2), 2),
    "gfx12": _Family((32, 4, 2), (64, 32, 8, 2), 2),
    "other": _Family((64, 4, 2), (64, 32, 4, 2), 2),
}


@lru_cache(4096)
def paged_tile(machine: Platform, rows: int, width: int, cached: int, size: int) -> PagedTile:
    """The tile for `rows` rows where they fit `MOST_ROWS`, else the one for many. width: the head size, as a power of
    two; cached, size: bytes of an element of the caches and of the product's factors.
    """
    found = FAMILIES[family(machine)]
    if rows <= MOST_ROWS:
        keys, warps, stages = found.few
        tile = PagedTile(max(LEAST_ROWS, 1 << (rows - 1).bit_length()), keys, warps, stages, found.options)
    else:
        tile = PagedTile(*found.many, found.options)
    keys = tile.keys
    if size == 4:
        # fp32: small tiles, and no more than two steps in memory
        tile = replace(tile, rows=min(tile.rows, 64), num_stages=min(tile.num_stages, 2))
        keys = 32
    elif cached == 1 and rows <= MOST_ROWS:
        keys *= 2
    while keys * width * size > 64 * 128 * 2 and keys > 16:
        keys //= 2
    return replace(tile, keys=keys)


@lru_cache(4096)
def splits_of(machine: Platform, tiles: int, steps: int) -> int:
    """Over how many programs each of `tiles` contexts of up to `steps` steps is split: the fewest that keep the
    machine nearly as busy as it gets.
    """
    slots = (machine.compute_units or UNITS) * FAMILIES[family(machine)].resident
    most = min(MOST_SPLITS, steps // 2)
    if most <= 1 or 5 * tiles >= 4 * slots:
        return 1

    def busy(splits: int) -> float:
        waves = tiles * splits / slots
        return waves / -(-tiles * splits // slots)

    best = max(busy(splits) for splits in range(1, most + 1))
    return next(splits for splits in range(1, most + 1) if busy(splits) >= 0.85 * best)
