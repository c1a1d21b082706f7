"""Tiles of attention over packed sequences, by architecture family: queries a program does, and keys it takes a step.

A tile follows the dtype, the head sizes and the longest sequence; where a row's sums must be the same in every batch,
not the last of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from aiter_ops.core.platforms import Platform

from .gemm import Options
from .norm import next_power_of_two

LEAST = 16
"""Fewest columns of a factor of the matrix units."""


@dataclass(frozen=True)
class AttentionTile:
    """rows: queries of a program; keys: of a step; num_stages: steps in flight.

    bf16: weights that meet FP8 codes of v are bf16; else fp16, which has more bits.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    options: Options = ()
    bf16: bool = False


T = AttentionTile

SIZES = (64, 128, 192, 256, 576)
"""The larger of the two head sizes, up to each of these: a column of `TILES`."""

_MFMA: Options = (("matrix_instr_nonkdim", 16),)
_CDNA = (
    T(128, 64, 8, 2, _MFMA),
    T(128, 64, 8, 1, _MFMA),
    T(128, 32, 8, 1, _MFMA),
    T(64, 32, 4, 1, _MFMA),
    T(32, 16, 4, 1, _MFMA),
)
_CDNA_FP32 = (T(64, 32, 4, 1, _MFMA), T(64, 32, 4, 1, _MFMA), T(32, 16, 4, 1, _MFMA), T(32, 16, 4, 1, _MFMA), None)
_RDNA3 = (T(64, 32, 4, 1), T(64, 16, 4, 1), T(64, 16, 4, 1), T(64, 16, 8, 1), None)
_RDNA4 = (T(64, 32, 4, 1), T(64, 32, 4, 1), T(64, 32, 8, 1), T(64, 16, 8, 1), None)
_RDNA_FP32 = (T(32, 16, 4, 1), T(32, 16, 4, 1), T(16, 16, 4, 1), T(16, 16, 4, 1), None)
_GFX1250 = (*_RDNA4[:4], T(16, 16, 8, 1))
_GFX1250_FP8 = tuple(T(tile.rows, tile.keys, 8, tile.num_stages, bf16=True) if tile else None for tile in _GFX1250)
"""Its compiler makes fp16 of FP8 with so many comparisons that scalar registers run out; bf16 it makes with none."""
_SM90 = (T(128, 128, 8, 3), T(128, 128, 8, 3), T(128, 64, 8, 3), T(128, 64, 8, 2), T(64, 32, 8, 2))
_SM90_FP32 = (T(64, 32, 4, 2), T(64, 32, 4, 2), T(32, 32, 4, 2), T(32, 32, 4, 2), T(16, 16, 4, 1))
_OTHER = (T(128, 64, 4, 2), T(128, 64, 8, 2), T(64, 32, 4, 2), T(64, 32, 4, 2), None)
_OTHER_FP32 = (T(64, 32, 4, 2), T(32, 32, 4, 2), T(32, 16, 4, 2), T(32, 16, 4, 1), None)

TILES: dict[str, dict[int, tuple[T | None, ...]]] = {
    "sm90": {1: _SM90, 2: _SM90, 4: _SM90_FP32},
    "gfx942": {1: _CDNA, 2: _CDNA, 4: _CDNA_FP32},
    "gfx950": {1: _CDNA, 2: _CDNA, 4: _CDNA_FP32},
    "gfx90a": {1: _CDNA, 2: _CDNA, 4: _CDNA_FP32},
    "gfx125": {1: _GFX1250_FP8, 2: _GFX1250, 4: _RDNA_FP32},
    "gfx12": {1: _RDNA4, 2: _RDNA4, 4: _RDNA_FP32},
    "gfx11": {1: _RDNA3, 2: _RDNA3, 4: _RDNA_FP32},
    "other": {1: _OTHER, 2: _OTHER, 4: _OTHER_FP32},
}
"""By family and bytes of an element, for each of `SIZES`; the first name that an architecture starts with. None: sums
and a step do not fit registers and LDS. On CDNA a wave has 16 rows: with 32, masks of a step need more scalar registers
than there are.
"""


def _row(machine: Platform) -> str:
    arch = machine.arch.replace("sm_", "sm")
    return next((name for name in TILES if arch.startswith(name)), "other")


SHORTER: dict[str, dict[tuple[int, int], tuple[int, T]]] = {"sm90": {(2, 1): (4096, T(64, 64, 4, 3))}}
"""By family, bytes of an element and column: up to how many keys another tile serves, and which. Two programs to a
multiprocessor, where a sequence's diagonal is much of its work: on an H100 11 % less time at 1k, 8 % at 2k, 2 % at 4k, none
at 8k. Keys and values by tensor descriptors were slower there with either tile (Triton 3.6: 0 to 40 %)."""


@lru_cache(256)
def attention_tile(machine: Platform, element: int, size: int, value_size: int, longest: int = 2**31) -> T | None:
    """The tile for heads of `size` and values of `value_size` columns of `element` bytes; None: it has none.

    longest: keys of the longest sequence, not given where sums must not follow it.
    """
    column = next((i for i, most in enumerate(SIZES) if max(size, value_size) <= most), None)
    if column is None:
        return None
    most, tile = SHORTER.get(_row(machine), {}).get((element, column), (0, None))
    return tile if longest <= most else TILES[_row(machine)][element][column]


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
    most = CACHE.get(_row(machine), 2**62) // max(head_bytes, 1)
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
