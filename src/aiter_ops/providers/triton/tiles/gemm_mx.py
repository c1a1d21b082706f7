"""Tiles of the products with MXFP4 weights and of the batched ones, by architecture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from aiter_ops.core.platforms import Platform
from aiter_ops.providers.triton.tiles.gemm import LEAST_STEPS, MOST_PARTS, Choices, ProductTile, family, k_first
from aiter_ops.providers.triton.tiles.quant import next_power_of_two

MATRIX_UNITS_WITH_SCALES = ("gfx950", "gfx1250")
"""Architectures whose matrix instructions take FP8 and FP4 with a scale for 32 elements (AMD CDNA 4 ISA, section 7)."""

T = ProductTile
_CDNA = Choices(((16, T(16, 64, 128, 4, 2, group=0)),), (T(64, 128, 128, 8, 2),))
_RDNA = Choices(((16, T(16, 64, 128, 4, 1, group=0)),), (T(64, 64, 128, 8, 1),))
MX_TILES = {
    "sm90": Choices(
        ((16, T(16, 64, 128, 4, 4, group=0)), (64, T(64, 128, 128, 8, 4, swap=True))),
        (T(128, 128, 128, 8, 3, swap=True), T(64, 128, 128, 8, 4, swap=True)),
    ),
    "gfx942": _CDNA,
    "gfx950": Choices(_CDNA.few, (T(128, 128, 128, 8, 2), T(64, 128, 128, 8, 2))),
    "gfx90a": _CDNA,
    "gfx11": _RDNA,
    "gfx12": _RDNA,
    "other": Choices(((16, T(16, 64, 128, 4, 3, group=0)),), (T(64, 64, 128, 4, 3),)),
}
"""Tiles of products with an MXFP4 weight by architecture family; columns are those of the result, depth counts codes."""

FIXED = 32
"""Rows of a tile where no tile may follow the number of rows."""

TWO = {
    "gfx942": T(32, 64, 128, 4, 1),
    "gfx950": T(64, 64, 128, 8, 1),
    "gfx90a": T(32, 64, 128, 4, 1),
    "gfx11": T(32, 64, 128, 8, 1),
}
"""For more than 16 rows of fp16, which are taken as two bf16 and need more registers."""


def codes_first(machine: Platform, tile: ProductTile, plain: bool) -> bool:
    """Whether packed weights are read as [K/2, N] (`gemm.body.summed`). plain: activations are floats, taken as they are; with
    16 rows of those it takes registers of one or two waves of six on gfx942.
    """
    return k_first(machine, 1) and not (plain and tile.rows <= 16)


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


@lru_cache(4096)
def plain_batch_tile(machine: Platform, batch: int, m: int, n: int, k: int, size: int, fixed: bool) -> tuple[Tile, int]:
    """The tile of `batch` products [m, k] · [n, k]ᵀ of `size`-byte floats, and the columns of a step.

    Few rows: bytes of the weight come first, as in `fp8_batch_tile`. fixed: the same for any number of rows.
    """
    nvidia = machine.vendor == "nvidia"
    rows = _rows(machine, m, fixed, 128 if nvidia and size == 2 else 64)
    columns = 128 if size == 2 else 64
    tiles, units = batch * (1 if fixed else -(-m // rows)), machine.compute_units or 128
    while columns > 32 and tiles * -(-n // columns) < (units * 3 // 2 if nvidia else 2 * units):
        columns //= 2
    if nvidia:
        most = 128 // size
    elif machine.wave_size == 32:  # waves of 32 lanes: as many columns would not fit their registers
        most = 64 // size
    else:
        most = 128 // size if rows * columns >= 8192 else 256 // size
        if size == 4 and k % most:  # masks of columns one by one would not fit the scalar registers
            most //= 2
    depth = max(16, min(next_power_of_two(k), most))
    stages = (3 if rows * columns >= 8192 else 4) if nvidia else 2
    return Tile(rows, columns, 8 if rows * columns >= 16384 else 4, stages, nvidia and rows < 64), depth


@lru_cache(4096)
def mx_tile(machine: Platform, batch: int, m: int, n: int, k: int, two: bool, fixed: bool) -> tuple[T, int]:
    """The tile for `batch` products [m, k] · [n, k]ᵀ with an MXFP4 weight, and the steps a program does of each sum.

    Only a lone product's sum is split. two: activations are taken as two bf16. fixed: neither may depend on m.
    """
    choices = MX_TILES[family(machine)]
    if two and family(machine) in TWO:
        choices = replace(choices, few=choices.few[:1], many=(TWO[family(machine)],))
    units = machine.compute_units or 128

    def tiles(t: T) -> int:
        return batch * -(-m // t.rows) * -(-n // t.columns)

    few = None if fixed else next((t for most, t in choices.few if m <= most), None)
    many = choices.many[-1:] if fixed else choices.many
    tile = few or next((t for t in many if tiles(t) >= units), many[-1])
    tile = replace(tile, depth=min(tile.depth, max(128, next_power_of_two(k))))
    steps = -(-k // tile.depth)
    parts = 1
    if batch == 1 and not fixed and tiles(tile) < units:
        parts = max(1, min(2 * units // tiles(tile), steps // LEAST_STEPS, MOST_PARTS))
    return tile, -(-steps // parts)
