"""How groups, blocks and pieces of rows are dealt to programs in the quant kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from aiter_ops.core.platforms import Platform

ONE_PASS = 16384
"""Widest group a program holds in registers at once; wider ones are read in steps, twice."""

MOST_PEAKS = 1024
"""Most partial maxima of a tensor: enough programs to keep the memory busy, few enough to be read by every program."""


@dataclass(frozen=True)
class Tile:
    """span: groups, blocks or pieces a program does at once; block: columns of each; num_warps: warps (or waves)."""

    span: int
    block: int
    num_warps: int


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length() if n > 1 else 1


def power_of_two_below(n: int) -> int:
    return 1 << (n.bit_length() - 1) if n > 0 else 1


def _lanes(machine: Platform) -> int:
    return machine.wave_size or 32


def _few(machine: Platform, total: int, span: int) -> bool:
    """Whether programs of `span` units each would leave compute units with less than two."""
    return total < 2 * span * (machine.compute_units or 128)


def _spread(machine: Platform, total: int, block: int, element: int, reads: int = 1) -> Tile:
    """32 bytes a lane in four warps where that gives enough programs, else one 16-byte load.

    element: bytes of one; reads: elements read for one result.
    """
    threads = 4 * _lanes(machine)
    least = 16 // element
    span = max(1, threads * max(32 // (element * reads), least) // block)
    if _few(machine, total, span):
        span = max(1, threads * least // block)
    return Tile(span, block, 4)


@lru_cache(4096)
def group_tile(machine: Platform, total: int, size: int, bytes_read: int) -> Tile:
    """Whole groups: several narrow ones a program, 64 bytes a lane; a wide one over many warps, 32 bytes a lane."""
    block, lanes = min(next_power_of_two(size), ONE_PASS), _lanes(machine)
    if block <= 1024:
        warps = 2 if bytes_read <= 2 else 4
        span = max(1, warps * lanes * max(64 // bytes_read, 8) // block)
        if _few(machine, total, span):
            warps, span = 4, max(1, 4 * lanes * 8 // block)
        return Tile(span, block, warps)
    each = max(32 // bytes_read, 4)
    if _few(machine, total, 1):
        each = max(each // 2, 4)
    warps = power_of_two_below(min(size, ONE_PASS) // (lanes * each))
    return Tile(1, block, max(4, min(warps, 1024 // lanes)))


@lru_cache(4096)
def piece_tile(machine: Platform, rows: int, width: int, element: int, reads: int = 1) -> Tile:
    """Pieces of at most 1024 columns."""
    block = min(next_power_of_two(width), 1024)
    return _spread(machine, rows * -(-width // block), block, element, reads)


@lru_cache(4096)
def block_tile(machine: Platform, total: int, element: int, fp4: bool) -> Tile:
    """MX blocks of 32. Where many are made into FP4, which is more work, every lane of a lone warp has one whole."""
    lanes = _lanes(machine)
    if fp4 and not _few(machine, total, lanes):
        return Tile(lanes, 32, 1)
    return _spread(machine, total, 32, element)


@lru_cache(4096)
def dequant_tile(machine: Platform, rows: int, width: int, group: int, bytes_written: int) -> Tile:
    """Pieces inside a group."""
    block = min(max(next_power_of_two(group), 2), 1024)
    return _spread(machine, rows * -(-width // group) * -(-group // block), block, bytes_written)
