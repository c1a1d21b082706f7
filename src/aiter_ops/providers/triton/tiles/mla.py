"""Tiles of MLA decoding, by architecture family: rows and keys of a program, and over how many a context is split."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aiter_ops.core.platforms import Platform

from .gemm import Options, family, k_first
from .quant import next_power_of_two

WIDEST_VALUE = 512
"""Columns of a value that a program holds sums of."""

SPLITS_WHEN_FIXED = 8
"""Where a result may not depend on the batch."""

LEAST_STEPS = {"sm90": 2}
"""A split has at least so many steps, were the longest context all of the cache's pages; other families: 4. On an H200 two
took 20 to 30 % less time than four at one sequence of 1k and 4k, one step more than two at 8k with 16 heads."""


OWN_PLAN = 4, 2**18
"""From so many sequences of so many keys in all (times the programs of 64 rows each), a plan is worth its making where
the caller brings none: on an H200 a third of the time for 64 sequences of 512 to 16k keys, and 3 to 6 % more where all
are as long. With 16 rows a program, following a plan cost 20 %, and contexts are split more finely without one.
"""


@dataclass(frozen=True)
class DecodeTile:
    """rows: heads × queries of a program, at most. step: keys of a step. halves: products the value's columns are done
    in, so that fewer registers hold addresses. planned_rows: as rows, for a program that follows a plan, which needs
    more registers; 0: plans are not followed, and every context is split evenly. reloaded: q is read in every step
    again, where the operands of matrix instructions leave no registers to keep it. per_unit: programs that a compute
    unit runs at once.
    """

    rows: int
    step: int
    num_warps: int
    num_stages: int
    halves: int
    planned_rows: int
    reloaded: bool = False
    per_unit: int = 1
    options: Options = ()


T = DecodeTile
_MFMA16 = (("matrix_instr_nonkdim", 16),)
_CDNA = {
    (2, 2): T(64, 16, 8, 2, 2, 32, options=_MFMA16),
    (2, 1): T(32, 16, 8, 2, 1, 0, options=_MFMA16),
    (1, 1): T(64, 32, 8, 2, 1, 0, options=_MFMA16),
    (4, 4): T(16, 16, 8, 1, 2, 16, options=_MFMA16),
}
_UNSTAGED = replace(_CDNA[2, 2], num_stages=1)
_RDNA = {
    (2, 2): T(16, 16, 8, 1, 2, 0, reloaded=True),
    (2, 1): T(16, 16, 8, 1, 2, 0, reloaded=True),
    (1, 1): T(16, 16, 8, 1, 2, 0, reloaded=True),
    (4, 4): T(16, 16, 8, 1, 2, 0, reloaded=True),
}
_HOPPER = T(64, 64, 8, 2, 2, 64)
TILES: dict[str, dict[tuple[int, int], T]] = {
    "sm90": {(2, 2): _HOPPER, (2, 1): _HOPPER, (1, 1): replace(_HOPPER, num_stages=3), (4, 4): T(16, 16, 8, 1, 2, 16)},
    "gfx942": {**_CDNA, (2, 2): _UNSTAGED, (1, 1): replace(_CDNA[1, 1], step=16)},
    "gfx950": {pair: replace(tile, planned_rows=min(tile.rows, 32)) for pair, tile in _CDNA.items()},
    "gfx90a": {**_CDNA, (2, 2): _UNSTAGED},
    "gfx11": {**_RDNA, (2, 2): T(16, 16, 16, 2, 2, 0, reloaded=True)},
    "gfx12": _RDNA,
    "other": {pair: T(16, 16 if pair == (4, 4) else 32, 4, 2, 2, 16) for pair in _RDNA},
}
"""By family, and bytes of an element of q and of the cache."""


FEW: dict[str, tuple[int, dict[tuple[int, int], T]]] = {
    "sm90": (16, {(2, 2): T(16, 32, 4, 3, 2, 16, per_unit=2), (1, 1): T(16, 32, 4, 3, 2, 16, per_unit=2)}),
    "gfx942": (32, {pair: _CDNA[pair] for pair in ((2, 2), (1, 1))}),
}
"""By family, for at most so many rows the tiles that are others: Hopper's 64 rows would be 48 of nothing; on gfx942 64 rows
leave no registers to keep as many keys in flight.
"""


def keys_first(machine: Platform, kv_bytes: int) -> bool:
    """Whether decoding reads keys as [columns, keys] (`gemm.body.summed`). Of fp32, whose values are read so from LDS too, it
    takes more cycles.
    """
    return kv_bytes < 4 and k_first(machine, kv_bytes)


@dataclass(frozen=True)
class MergeTile:
    """rows × columns of a result that a program merges, `pieces` parts of a context at a time."""

    pieces: int
    rows: int
    columns: int


MERGED = 4096
"""Numbers of parts that a program of 4 warps holds at a time."""


def merge_tile(parts: int, value: int, planned: bool) -> MergeTile:
    """The tile for values of `value` columns in at most so many parts; of a plan, where most sequences have few.

    What a program waits for is memory, once for every `pieces` parts.
    """
    width = next_power_of_two(max(value, 16))
    pieces = 8 if planned else min(next_power_of_two(parts), 32)
    columns = min(width, MERGED // pieces) if pieces <= 8 else min(width, 128)
    return MergeTile(pieces, max(1, min(4, MERGED // (pieces * columns))), columns)


@dataclass(frozen=True)
class ExpandTile:
    """tokens × columns of keys or values of one head that a program makes, `depth` latent columns a step."""

    tokens: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    options: Options = ()


_EXPAND_CDNA = {
    2: ExpandTile(64, 128, 64, 4, 2, _MFMA16),
    1: ExpandTile(64, 128, 128, 4, 2, _MFMA16),
    4: ExpandTile(32, 64, 32, 4, 1, _MFMA16),
}
_EXPAND_RDNA = {2: ExpandTile(64, 64, 32, 4, 2), 1: ExpandTile(64, 64, 64, 4, 2), 4: ExpandTile(32, 32, 32, 4, 1)}
EXPAND: dict[str, dict[int, ExpandTile]] = {
    "sm90": {
        2: ExpandTile(128, 128, 64, 8, 4),
        1: ExpandTile(128, 128, 128, 8, 3),
        4: ExpandTile(64, 64, 32, 4, 2),
    },
    "gfx942": _EXPAND_CDNA,
    "gfx950": _EXPAND_CDNA,
    "gfx90a": _EXPAND_CDNA,
    "gfx11": _EXPAND_RDNA,
    "gfx12": _EXPAND_RDNA,
    "other": _EXPAND_RDNA,
}
"""By family and bytes of an element of the latents."""


def expand_tile(machine: Platform, element: int, columns: int) -> ExpandTile:
    """The tile for latents of so many bytes an element; `columns`: the more of a head's keys (less rope) or values."""
    tile = EXPAND[family(machine)][element]
    return replace(tile, columns=min(tile.columns, max(16, next_power_of_two(columns))))


def decode_tile(machine: Platform, q_bytes: int, kv_bytes: int, rows: int, planned: bool) -> DecodeTile:
    """The tile for sequences of at most `rows` rows; planned: one that follows a plan, where its family does."""
    tiles = TILES[family(machine)]
    tile = tiles.get((q_bytes, kv_bytes), tiles[4, 4])
    most = tile.planned_rows if planned and tile.planned_rows else tile.rows
    few, others = FEW.get(family(machine), (0, {}))
    if min(rows, most) <= few and (q_bytes, kv_bytes) in others:
        tile = others[q_bytes, kv_bytes]
        most = tile.planned_rows if planned and tile.planned_rows else tile.rows
    # Hopper's matrix instructions have 64 rows
    return tile if machine.vendor == "nvidia" else replace(tile, rows=min(most, max(16, next_power_of_two(rows))))


def worth_a_plan(machine: Platform, tile: DecodeTile, batch: int, tiles: int, most_keys: int) -> bool:
    """Whether a call without a plan makes one: the lengths, which only the device knows, may be uneven."""
    return (
        family(machine) == "sm90"
        and tile.planned_rows >= tile.rows
        and tile.per_unit == 1
        and batch >= OWN_PLAN[0]
        and most_keys * tiles >= OWN_PLAN[1]
    )


def split_count(machine: Platform, tile: DecodeTile, batch: int, tiles: int, most_keys: int, fixed: bool) -> int:
    """Over how many programs each context is split. most_keys: the longest it can be. fixed: see `SPLITS_WHEN_FIXED`."""
    if fixed:
        return SPLITS_WHEN_FIXED
    wanted = (machine.compute_units or 128) * tile.per_unit // max(batch * tiles, 1)
    return max(min(wanted, most_keys // (tile.step * LEAST_STEPS.get(family(machine), 4))), 1)
