"""Tiles of the products, by architecture family: what one program does, and over how many programs a sum is split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from aiter_ops.core.platforms import Platform

Options = tuple[tuple[str, object], ...]

WIDEST = 2**22
"""Most columns of a factor or a result: offsets inside a tile of 256 rows then fit 32 bits."""

LEAST_STEPS = 4
"""A part of a split sum has at least so many steps."""

MOST_PARTS = 32
_LEAST = {1: 32, 2: 32, 4: 16}
"""Columns of a step where rows do not start at multiples of 16 bytes, by bytes of an element."""


@dataclass(frozen=True)
class ProductTile:
    """rows × columns of the result a program does, `depth` columns of the factors a step.

    swap: the product is made transposed, for matrix units whose tiles are taller than `rows`. described: factors are
    read through tensor descriptors (the copy engine of NVIDIA's Hopper), the columns in `halves` products, so that
    fewer registers hold sums. group: rows of tiles done together, see `tile_of`; 0: only for as many rows of the result
    as one tile has. num_stages: steps in flight.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    swap: bool = False
    described: bool = False
    halves: int = 1
    group: int = 8
    options: Options = ()


T = ProductTile


@dataclass(frozen=True)
class Choices:
    """few: for at most so many rows, the first that can be used. many: for more, from the largest; the first that gives
    every other compute unit a tile at least.
    """

    few: tuple[tuple[int, T], ...]
    many: tuple[T, ...]


def _choices(*tiles: T, most: tuple[int, ...] = (16, 64)) -> Choices:
    """`tiles` for at most so many rows each, the others for more. What is for few rows alone needs no order of rows of tiles."""
    few, many = tiles[: len(most)], tiles[len(most) :]
    few = tuple(
        replace(t, group=0) if rows <= t.rows and t not in many else t for rows, t in zip(most, few, strict=True)
    )
    return Choices(tuple(zip(most, few, strict=True)), many)


_CDNA = {
    element: _choices(*(replace(t, options=(("matrix_instr_nonkdim", 16),)) for t in found))
    for element, found in {
        1: (
            T(16, 64, 128, 4, 2),
            T(64, 64, 128, 4, 2),
            T(256, 128, 128, 8, 2),
            T(128, 128, 128, 8, 2),
            T(64, 64, 128, 4, 2),
        ),
        2: (
            T(16, 64, 128, 4, 2),
            T(64, 64, 64, 4, 2),
            T(256, 128, 64, 8, 2),
            T(128, 128, 64, 4, 2),
            T(64, 64, 64, 4, 2),
        ),
        4: (T(16, 64, 64, 4, 2), T(64, 64, 32, 4, 2), T(128, 64, 32, 4, 2), T(64, 64, 32, 4, 2)),
    }.items()
}
_RDNA = {
    1: _choices(T(16, 64, 128, 4, 2), T(64, 64, 64, 4, 2), T(128, 64, 64, 8, 2), T(64, 64, 64, 4, 2)),
    2: _choices(T(16, 64, 64, 4, 2), T(64, 64, 32, 4, 2), T(128, 64, 32, 8, 2), T(64, 64, 32, 4, 2)),
    4: _choices(T(16, 32, 32, 4, 2), T(32, 32, 32, 4, 2), T(32, 32, 32, 4, 2)),
}
TILES: dict[str, dict[int, Choices]] = {
    "sm90": {
        1: _choices(
            T(16, 64, 128, 4, 6, swap=True),
            T(32, 64, 128, 4, 5, swap=True),
            T(64, 64, 128, 4, 5),
            T(128, 128, 128, 8, 3, described=True, halves=2),
            T(128, 128, 128, 8, 4),
            T(64, 64, 128, 4, 5),
            most=(16, 32, 64),
        ),
        2: _choices(
            T(16, 64, 128, 4, 4, swap=True),
            T(32, 64, 128, 4, 4, swap=True),
            T(64, 64, 64, 4, 5),
            T(128, 128, 64, 8, 4, described=True),
            T(128, 64, 64, 4, 4),
            T(128, 256, 64, 8, 4, described=True, halves=2),
            T(128, 128, 64, 8, 4, described=True),
            T(128, 128, 64, 8, 4),
            T(64, 64, 64, 4, 5),
            most=(16, 32, 64, 128, 128),
        ),
        4: _choices(T(16, 64, 32, 4, 3), T(64, 64, 32, 4, 3), T(64, 64, 32, 4, 3)),
    },
    "gfx942": _CDNA,
    "gfx950": _CDNA,
    "gfx90a": _CDNA,
    "gfx11": _RDNA,
    "gfx12": _RDNA,
    "other": {
        1: _choices(T(16, 64, 128, 4, 3), T(64, 64, 128, 4, 3), T(128, 128, 64, 8, 3), T(64, 64, 128, 4, 3)),
        2: _choices(T(16, 64, 64, 4, 3), T(64, 64, 64, 4, 3), T(128, 128, 32, 8, 3), T(64, 64, 64, 4, 3)),
        4: _choices(T(16, 64, 32, 4, 2), T(64, 64, 32, 4, 2), T(64, 64, 32, 4, 2)),
    },
}
"""By family and bytes of an element."""

BLOCKED = {
    "sm90": {1: replace(TILES["sm90"][1], many=(T(128, 128, 128, 8, 4, described=True), *TILES["sm90"][1].many[1:]))}
}
"""Likewise for scales of blocks, where they want others: every step's sum is added apart, in registers."""

DIES = {"gfx942": 8, "gfx950": 8}
"""Dies that consecutive programs go to in turn (AMD CDNA 3 white paper, "compute and memory partitioning": 8 XCDs)."""

K_FIRST = {"gfx942": (1, 2, 4), "gfx90a": (1, 2, 4), "gfx950": (4,)}
"""By architecture, the bytes of an element of factors [N, K] that kernels read as [K, N] (`gemm.body.summed`), since they lie
better in LDS so; on gfx950 small tiles of others need no LDS the other way (docs/cli-inspect.md has the counts).
"""


def k_first(machine: Platform, element: int) -> bool:
    return element in K_FIRST.get(machine.arch, ())


def family(machine: Platform) -> str:
    """The row of `TILES` for a machine."""
    arch = machine.arch.replace("sm_", "sm")
    return next((name for name in TILES if arch.startswith(name)), "other")


def fitting(tile: T, element: int, aligned: bool, block: int | None) -> T:
    """`tile` with a depth that divides `block`, the columns that share a scale; short steps of rows that are read
    element by element.
    """
    depth = tile.depth if aligned else min(tile.depth, _LEAST[element])
    return replace(tile, depth=depth if block is None or block % depth == 0 else min(depth, block & -block))


def _parts(tile: T, tiles: int, k: int, units: int) -> int:
    """Over how many programs the sum of one tile is split, so that every compute unit has about two programs."""
    parts = min(2 * units // tiles, -(-k // tile.depth) // LEAST_STEPS, MOST_PARTS)
    return max(parts, 1)


@lru_cache(4096)
def product_tile(
    machine: Platform,
    m: int,
    n: int,
    k: int,
    element: int,
    aligned: bool,
    describable: bool,
    block: int | None,
    fixed: bool,
) -> tuple[T, int]:
    """The tile for [m, k] · [n, k]ᵀ and the steps a program does of each sum.

    element: bytes of one. aligned: rows start at multiples of 16 bytes. describable: tensor descriptors can be made of
    both factors. block: columns that share a scale. fixed: neither may depend on m.
    """
    choices = TILES[family(machine)][element]
    if block is not None:
        choices = BLOCKED.get(family(machine), {}).get(element, choices)
    few = tuple(t for most, t in choices.few if m <= most and (describable or not t.described))
    many = tuple(t for t in choices.many if describable or not t.described)
    units = machine.compute_units or 128

    def tiles(t: T) -> int:
        return -(-m // t.rows) * -(-n // t.columns)

    if fixed:
        tile, parts = fitting(many[-1], element, aligned, block), 1
    else:
        tile = few[0] if few else next((t for t in many if 2 * tiles(t) >= units), many[-1])
        tile = fitting(tile, element, aligned, block)
        parts = _parts(tile, tiles(tile), k, units) if tiles(tile) < units else 1
    steps = -(-k // tile.depth)
    return tile, -(-steps // parts)
