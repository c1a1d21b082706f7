"""Tiles of the grouped products of experts, by architecture and by how many slots an expert has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from aiter_ops.core.platforms import Platform

from .gemm import Options, family

FEW_TOKENS = 4
"""Up to so many tokens, slots are not sorted: hardly two of them share an expert."""

UNITS = 128
"""Compute units of a machine whose number is not known."""

FIXED_ROWS = 64
"""Rows of a block where no result may depend on how many tokens there are."""


@dataclass(frozen=True)
class ExpertTile:
    """columns of a program, in steps of `depth` bytes of a row; blocks of rows that share tiles of weights in `group`s.

    columns are rows of the weight: a tile of gate and up makes half as many results. swap: see `gemm.body.summed`.
    """

    columns: int
    depth: int
    num_warps: int
    num_stages: int
    group: int = 1
    swap: bool = False
    options: Options = ()


T = ExpertTile

# The public tuned tables for H200 and MI300X (vLLM, fused_moe/configs) have the same few shapes; gates pair columns.
_HOPPER = {
    16: T(64, 256, 4, 4, swap=True),
    32: T(128, 256, 4, 3, swap=True),
    64: T(128, 128, 4, 4, group=8),
    128: T(256, 128, 8, 3, group=8),
}
_HOPPER_BLOCK = {
    16: T(64, 128, 4, 6, swap=True),
    32: T(128, 128, 4, 4, swap=True),
    64: T(256, 128, 8, 3, group=8),
}
"""For FP8 in blocks: a step's product is held beside the sum. 256 columns of gate and up are 128 results, a group."""

_HOPPER_MX = {
    16: T(64, 128, 4, 4),
    32: T(64, 128, 4, 4),
    64: T(128, 128, 8, 4, group=8, swap=True),
    128: T(128, 128, 8, 3, group=8, swap=True),
}
_CDNA_MX = {16: T(64, 128, 4, 2), 32: T(64, 128, 4, 2), 64: T(64, 128, 8, 2, 8), 128: T(64, 128, 8, 2, 8)}
_RDNA_MX = {16: T(64, 64, 4, 2), 32: T(64, 64, 4, 2), 64: T(64, 64, 8, 2, 8), 128: T(64, 64, 8, 2, 8)}
"""For MXFP4, which is unpacked in registers; depths are codes."""

_CDNA = {16: T(64, 256, 4, 2), 32: T(64, 128, 4, 2), 64: T(128, 128, 4, 2, 8), 128: T(128, 128, 8, 2, 8)}
_CDNA = {rows: replace(tile, options=(("matrix_instr_nonkdim", 16),)) for rows, tile in _CDNA.items()}
_RDNA = {16: T(64, 128, 4, 2), 32: T(64, 128, 4, 2), 64: T(64, 128, 4, 2, 8), 128: T(128, 64, 8, 2, 8)}
_OTHER = {16: T(128, 256, 4, 3), 32: T(128, 128, 4, 3), 64: T(128, 128, 4, 3, 8), 128: T(128, 128, 8, 3, 8)}

TILES: dict[str, dict[int, ExpertTile]] = {
    "sm90": _HOPPER,
    "sm90 block": _HOPPER_BLOCK,
    "sm90 mx": _HOPPER_MX,
    "other": _OTHER,
    "other mx": _RDNA_MX,
}
TILES |= {f"gfx{n}": _CDNA for n in ("942", "950", "90a")} | {f"gfx{n} mx": _CDNA_MX for n in ("942", "950", "90a")}
TILES |= {f"gfx{n}": _RDNA for n in ("11", "12")} | {f"gfx{n} mx": _RDNA_MX for n in ("11", "12")}
"""By family, and kind of weights where it pays, and rows of a block."""


def _tiles(machine: Platform, kind: str) -> dict[int, ExpertTile]:
    name = family(machine)
    return TILES.get(f"{name} {kind}", TILES[name])


def block_rows(machine: Platform, slots: int, experts: int, kind: str, fixed: bool) -> int:
    """Rows of a block for `slots` among `experts`; fixed: whatever their number. kind: see `expert_tile`."""
    if fixed:
        return FIXED_ROWS
    each = slots / min(slots, experts)
    return min(16 if each <= 8 else 32 if each <= 24 else 64 if each < 64 else 128, max(_tiles(machine, kind)))


@lru_cache(4096)
def expert_tile(
    machine: Platform, rows: int, programs: int, width: int, depth: int, size: int, kind: str, gated: bool
) -> ExpertTile:
    """The tile of a layer in blocks of `rows` rows, `programs` of them, with `width` rows of weights in elements of
    `size` bytes and sums over `depth` columns; the tile's depth is in elements here.

    kind: ``block`` where blocks of weights have scales, ``mx`` for MXFP4, else ``plain``.
    """
    tile = _tiles(machine, kind)[rows]
    amd = machine.vendor == "amd"
    if size == 4:
        tile = replace(tile, columns=min(tile.columns, 2048 // rows), depth=128, swap=False)
    if kind == "block":
        # a step's product is held beside the sum; RDNA has the fewest registers left for both
        lanes = tile.num_warps * (machine.wave_size or 32)
        while rows * tile.columns > (32 if amd and machine.wave_size == 32 else 64) * lanes:
            tile = replace(tile, columns=tile.columns // 2)
        if tile.columns > 128 and not gated:
            tile = replace(tile, columns=128, num_warps=4)
    if rows == 16 and programs * width // tile.columns < 2 * (machine.compute_units or UNITS):
        tile = replace(tile, columns=32, swap=False)
    if kind == "mx":
        return tile
    step = 128 if kind == "block" else min(tile.depth // size, 128)
    while depth % step and step > 32:
        step //= 2
    return replace(tile, depth=step)
