"""Tiles of the grouped products of experts, by architecture and by how many slots an expert has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from aiter_ops.core.platforms import Platform

FEW_TOKENS = 4
"""Up to so many tokens, slots are not sorted: hardly two of them share an expert."""


@dataclass(frozen=True)
class ExpertTile:
    """rows × columns of a program, in steps of depth; group: blocks of rows that share tiles of weights in turn.

    columns are rows of the weight: a tile of gate and up makes half as many results.
    """

    rows: int
    columns: int
    depth: int
    group: int
    num_warps: int
    num_stages: int


Row = tuple[int, int, int, int, int]
"""columns, bytes of depth, group, warps, stages"""

TILES: dict[str, dict[int, Row]] = {
    # tuned tables of public engines for H200 and MI300X start from the same few shapes
    "sm90": {16: (128, 256, 1, 4, 3), 32: (128, 256, 1, 4, 3), 64: (128, 128, 8, 4, 4), 128: (256, 128, 8, 8, 3)},
    "gfx950": {16: (64, 256, 1, 4, 2), 32: (128, 256, 1, 4, 2), 64: (128, 128, 8, 4, 2), 128: (128, 128, 8, 8, 2)},
    "gfx9": {16: (64, 256, 1, 4, 2), 32: (64, 128, 1, 4, 2), 64: (128, 128, 8, 4, 2), 128: (128, 128, 8, 8, 2)},
    "gfx1": {16: (64, 128, 1, 4, 2), 32: (64, 128, 1, 4, 2), 64: (64, 128, 8, 4, 2), 128: (128, 64, 8, 8, 2)},
}
"""By family and rows of a block."""

FIXED_ROWS = 64
"""Rows of a block where no result may depend on how many tokens there are."""


def family(machine: Platform) -> dict[int, Row]:
    for name in ("gfx950", "gfx9", "gfx1"):
        if machine.arch.startswith(name):
            return TILES[name]
    return TILES["sm90"]


def block_rows(slots: int, experts: int, fixed: bool) -> int:
    """Rows of a block for `slots` among `experts`; fixed: whatever their number."""
    if fixed:
        return FIXED_ROWS
    each = slots / min(slots, experts)
    return 16 if each <= 8 else 32 if each <= 24 else 64 if each < 64 else 128


@lru_cache(4096)
def expert_tile(machine: Platform, rows: int, dtype: torch.dtype, scales: str, gated: bool) -> ExpertTile:
    """The tile of a layer whose blocks have `rows` rows and whose weights are of `dtype`."""
    columns, depth_bytes, group, warps, stages = family(machine)[rows]
    depth = depth_bytes // dtype.itemsize
    if dtype == torch.float32:
        columns, depth = min(columns, 64), 32
    if scales == "block":
        depth = 128
        if rows == 128:
            columns = 128
    return ExpertTile(rows, columns, depth, group, warps, stages)
