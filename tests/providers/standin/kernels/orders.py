"""Orders of bytes, by the place of each element: where AITER's kernels look for row n and column k.

A weight in tiles of `rows` is read by lanes: 16 bytes of a row each, the rows of a tile one after the other, then the
next 16 bytes of them (csrc/ and composable_kernel's B-preshuffle; written out in facts of aiter/ops/shuffle.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _grid(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return torch.arange(rows)[:, None], torch.arange(columns)[None, :]


def weight_places(rows: int, columns: int, lane: int, tile: int = 16, deep: int = 16) -> Tensor:
    """int64 [rows, columns]: the place in memory of each element. lane: elements that 16 bytes hold; a tile has `tile` rows
    and ``2 * deep`` columns.
    """
    n, k = _grid(rows, columns)
    width = 2 * deep
    lanes = width // lane
    block = (n // tile) * (columns // width) + k // width
    within = (k % width // lane * tile + n % tile) * lane + k % lane
    return block * (tile * lanes * lane) + within


def interleaved_places(rows: int, columns: int, gate_up: bool) -> Tensor:
    """The order of shuffle_weight_a16w4 for one expert of packed MXFP4: tiles of 16 rows and 64 bytes, 16 bytes a lane;
    gate_up: the first half of the rows and the second take turns, tile by tile.
    """
    n, k = _grid(rows, columns)
    half, turn = n, torch.zeros_like(n)
    if gate_up:
        half, turn = n % (rows // 2), n // (rows // 2)
    turns = 2 if gate_up else 1
    block = (half // 16 * turns + turn) * (columns // 64) + k // 64
    return block * 1024 + (k % 64 // 16 * 16 + half % 16) * 16 + k % 16


def scale_places(rows: int, columns: int) -> Tensor:
    """The order of E8M0 exponents for gfx950: tiles of 32 rows and 8 columns; of a lane's four bytes two are 16 rows apart,
    two 4 columns.
    """
    n, k = _grid(rows, columns)
    block = (n // 32) * (columns // 8) + k // 8
    lane = k % 4 * 16 + n % 16
    return block * 256 + lane * 4 + k % 8 // 4 * 2 + n % 32 // 16


def gate_up_scale_places(rows: int, columns: int) -> Tensor:
    """As `scale_places`, for one expert whose gates are the first half of the rows: the two rows of a lane are a gate's and
    an up's.
    """
    n, k = _grid(rows, columns)
    half, turn = n % (rows // 2), n // (rows // 2)
    block = half // 16 * (columns // 8) + k // 8
    return block * 256 + (k % 4 * 16 + half % 16) * 4 + k % 8 // 4 * 2 + turn


def read(x: Tensor, places: Tensor) -> Tensor:
    """x [..., N, K] of bytes in that order -> in the order of its shape."""
    flat = _raw(x).reshape(*x.shape[:-2], -1)
    return flat[..., places].view(x.dtype)


def stored(x: Tensor, places: Tensor) -> Tensor:
    """The inverse of `read`: x in the order of its shape, stored in that order."""
    raw = _raw(x).reshape(*x.shape[:-2], -1)
    made = torch.empty_like(raw)
    made[..., places.flatten()] = raw
    return made.view(x.shape).view(x.dtype)


def _raw(x: Tensor) -> Tensor:
    """The bits, in a type that can be indexed."""
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()])
