"""Tiles of attention over packed sequences, by architecture family: queries a program does, and keys it takes a step.

A tile follows the dtype and the head sizes alone, never lengths: a row's sums are the same in every batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from aiter_ops.core.platforms import Platform

from .gemm import Options, family
from .norm import next_power_of_two

LEAST = 16
"""Fewest columns of a factor of the matrix units."""


@dataclass(frozen=True)
class AttentionTile:
    """rows: queries of a program; keys: of a step; num_stages: steps in flight."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    options: Options = ()


T = AttentionTile

_CDNA_OPTIONS: Options = (("matrix_instr_nonkdim", 16), ("waves_per_eu", 2))
_CDNA_WIDE: Options = (("matrix_instr_nonkdim", 16),)
SIZES = (64, 128, 192, 256, 576)
"""The larger of the two head sizes, up to each of these: a column of `TILES`."""

TILES: dict[str, dict[int, tuple[T | None, ...]]] = {
    "sm90": {
        1: (T(128, 128, 8, 3), T(128, 128, 8, 3), T(128, 64, 8, 3), T(128, 64, 8, 2), T(64, 32, 8, 2)),
        2: (T(128, 128, 8, 3), T(128, 128, 8, 3), T(128, 64, 8, 3), T(128, 64, 8, 2), T(64, 32, 8, 2)),
        4: (T(64, 32, 4, 2), T(64, 32, 4, 2), T(32, 32, 4, 2), T(32, 32, 4, 2), T(16, 16, 4, 1)),
    },
    "gfx942": {
        1: (
            T(128, 64, 4, 1, _CDNA_OPTIONS),
            T(128, 64, 4, 1, _CDNA_OPTIONS),
            T(128, 32, 4, 1, _CDNA_WIDE),
            T(64, 32, 4, 1, _CDNA_WIDE),
            T(64, 16, 8, 1, _CDNA_WIDE),
        ),
        2: (
            T(128, 64, 4, 1, _CDNA_OPTIONS),
            T(128, 64, 4, 1, _CDNA_OPTIONS),
            T(128, 32, 4, 1, _CDNA_WIDE),
            T(64, 32, 4, 1, _CDNA_WIDE),
            T(64, 16, 8, 1, _CDNA_WIDE),
        ),
        4: (
            T(64, 32, 4, 1, _CDNA_WIDE),
            T(64, 32, 4, 1, _CDNA_WIDE),
            T(32, 16, 4, 1, _CDNA_WIDE),
            T(32, 16, 4, 1, _CDNA_WIDE),
            None,
        ),
    },
    "gfx11": {
        1: (T(64, 32, 4, 1), T(64, 32, 4, 1), T(64, 32, 8, 1), T(64, 16, 8, 1), T(16, 16, 8, 1)),
        2: (T(64, 32, 4, 1), T(64, 32, 4, 1), T(64, 32, 8, 1), T(64, 16, 8, 1), T(16, 16, 8, 1)),
        4: (T(32, 16, 4, 1), T(32, 16, 4, 1), T(16, 16, 4, 1), T(16, 16, 4, 1), None),
    },
    "other": {
        1: (T(128, 64, 4, 3), T(128, 64, 8, 2), T(64, 32, 4, 2), T(64, 32, 4, 2), None),
        2: (T(128, 64, 4, 3), T(128, 64, 8, 2), T(64, 32, 4, 2), T(64, 32, 4, 2), None),
        4: (T(64, 32, 4, 2), T(32, 32, 4, 2), T(32, 16, 4, 2), T(32, 16, 4, 1), None),
    },
}
"""By family and bytes of an element, for each of `SIZES`. None: a step of keys and values does not fit the LDS."""

TILES["gfx90a"] = TILES["gfx950"] = TILES["gfx942"]
TILES["gfx12"] = TILES["gfx11"]


@lru_cache(256)
def attention_tile(machine: Platform, element: int, size: int, value_size: int) -> T | None:
    """The tile for heads of `size` and values of `value_size` columns of `element` bytes; None: it has none."""
    column = next((i for i, most in enumerate(SIZES) if max(size, value_size) <= most), None)
    return None if column is None else TILES[family(machine)][element][column]


def halves(size: int) -> tuple[int, int]:
    """Two powers of two that hold `size` columns together, the second 0 where one does: 192 is 128 and 64."""
    main = next_power_of_two(size + 1) // 2
    rest = max(next_power_of_two(size - main), LEAST) if size > main else 0
    if main < LEAST or rest >= main:
        return max(next_power_of_two(size), LEAST), 0
    return main, rest


CACHE = {"sm90": 2**25}
"""Bytes of keys and values that heads done together may have, by family; others: all heads together."""


def together(machine: Platform, heads: int, group: int, head_bytes: int) -> int:
    """How many of a sequence's heads are done together, so that what they read stays in the cache between blocks of
    queries: a divisor of `heads`, whole groups. head_bytes: keys and values of one key head.
    """
    most = CACHE.get(family(machine), 2**62) // max(head_bytes, 1)
    shared = heads // group
    return group * next(n for n in range(shared, 0, -1) if shared % n == 0 and (n <= most or n == 1))


@dataclass(frozen=True)
class MergeTile:
    """rows of one token and head each, `block` columns a row."""

    rows: int
    block: int
    num_warps: int


@lru_cache(256)
def merge_tile(machine: Platform, size: int) -> MergeTile:
    """Each lane reads 8 columns of both parts, 16 bytes of a 2-byte type."""
    block, lanes = next_power_of_two(size), machine.wave_size or 32
    rows = max(8 * lanes * 2 // block, 1)
    return MergeTile(rows, block, max(1, min(8, rows * block // (8 * lanes))))
