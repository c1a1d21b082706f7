"""Tiles of attention over paged caches, by architecture family, and over how many programs a context is split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from aiter_ops.core.platforms import Platform
from aiter_ops.ops.attention.paged_plan import MOST_ROWS

from .gemm import Options, family, k_first

WIDEST = 256
"""Largest head size."""

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


T = PagedTile


class Family(NamedTuple):
    """Tiles of rising rows for head sizes up to 128 and up to 256, for caches and factors of 2 bytes; the last is for
    sequences that fit none. Up to `MOST_ROWS` rows there is memory to wait for: small tiles, many steps in flight.

    coded: how many times as many keys a step of up to `MOST_ROWS` rows has where the caches hold a byte each.
    resident: programs a compute unit holds at the same time.
    """

    narrow: tuple[T, ...]
    wide: tuple[T, ...]
    coded: int = 1
    resident: int = 2


# of the steps in flight the pipeliner (Triton 3.7) gives half to the table, whose entries the caches' addresses wait for:
# five are two tiles of keys and two of values
_HOPPER = Family(
    (T(16, 64, 4, 5), T(32, 64, 4, 5), T(64, 64, 4, 3), T(128, 64, 8, 5)),
    (T(16, 32, 4, 5), T(32, 32, 4, 5), T(64, 32, 4, 3), T(128, 32, 8, 3)),
    coded=2,
)
_MATRIX_16 = (("matrix_instr_nonkdim", 16),)
_CDNA = Family(
    tuple(
        replace(t, options=_MATRIX_16) for t in (T(16, 64, 4, 2), T(32, 64, 4, 2), T(64, 64, 4, 2), T(128, 64, 8, 2))
    ),
    tuple(
        replace(t, options=_MATRIX_16) for t in (T(16, 32, 4, 2), T(32, 32, 4, 2), T(64, 32, 8, 2), T(128, 32, 8, 2))
    ),
)
# a wave holds factors over the whole head size; RDNA 3 holds each twice
_RDNA3 = Family((T(16, 32, 4, 2), T(32, 16, 4, 2), T(64, 16, 8, 2)), (T(16, 16, 4, 2),))
_RDNA4 = Family((T(16, 32, 4, 2), T(32, 32, 4, 2), T(64, 32, 8, 2)), (T(16, 16, 4, 2), T(32, 16, 8, 2)))
FAMILIES: dict[str, Family] = {
    "sm90": _HOPPER,
    "gfx942": _CDNA,
    "gfx950": _CDNA,
    "gfx90a": _CDNA,
    "gfx11": _RDNA3,
    "gfx12": _RDNA4,
    "other": Family(
        (T(16, 64, 4, 2), T(32, 64, 4, 2), T(64, 32, 4, 2)),
        (T(16, 32, 4, 2), T(32, 32, 4, 2), T(64, 32, 8, 2)),
    ),
}


@lru_cache(4096)
def paged_tile(machine: Platform, rows: int, width: int, cached: int, size: int) -> PagedTile:
    """The smallest tile of `rows` rows, or the largest there is. width: the head size, as a power of two; cached, size:
    bytes of an element of the caches and of the product's factors.
    """
    found = FAMILIES[family(machine)]
    tiles = found.narrow if width <= 128 else found.wide
    if size == 4:
        tiles = tuple(t for t in tiles if t.rows <= MOST_ROWS)
    tile = next((t for t in tiles if t.rows >= rows), tiles[-1])
    if size == 4:
        tile = replace(tile, keys=16 if width > 64 else 32, num_stages=min(tile.num_stages, 2))
    elif cached == 1 and rows <= MOST_ROWS:
        tile = replace(tile, keys=tile.keys * found.coded)
        if machine.arch.startswith("gfx120") and tile.rows == 16:
            # Triton makes FP8 values there in many instructions with masks, which fit two warps' scalar registers alone
            tile = replace(tile, num_warps=2)
    return tile


ROUNDS, LONG = 4, 64
"""Rounds of programs for contexts that can be long, and steps that a program then has at least."""


@lru_cache(4096)
def keys_k_first(machine: Platform, cached: int, width: int) -> bool:
    """Whether keys are read as [size, keys], see `gemm.body.summed`. On gfx90a heads of 256 have no registers for it."""
    return k_first(machine, cached) and not (machine.arch == "gfx90a" and width == 256)


def splits_of(machine: Platform, tiles: int, steps: int) -> int:
    """Over how many programs each of `tiles` contexts of up to `steps` steps is split: the fewest that keep the
    machine nearly as busy as it gets. Long contexts may differ much: their programs come in `ROUNDS` rounds, so that the
    longest is no long wait at the end.
    """
    slots = (machine.compute_units or UNITS) * FAMILIES[family(machine)].resident
    most = min(MOST_SPLITS, steps // 2)
    least = min(most, steps // LONG, ROUNDS * slots // tiles)
    if most <= 1 or (5 * tiles >= 4 * slots and least <= 1):
        return 1

    def busy(splits: int) -> float:
        waves = tiles * splits / slots
        return waves / -(-tiles * splits // slots)

    wanted = range(max(least, 1), most + 1)
    best = max(map(busy, wanted))
    return next(splits for splits in wanted if busy(splits) >= 0.85 * best)
