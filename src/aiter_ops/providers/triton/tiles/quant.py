"""How groups, blocks and pieces of rows are dealt to programs in the quant kernels."""

from __future__ import annotations

from dataclasses import dataclass

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


def lanes(machine: Platform) -> int:
    return machine.wave_size or 32


def _spread(machine: Platform, total: int, span: int, least: int) -> int:
    """Fewer units a program where `total` of them would not give every compute unit two programs."""
    units = 2 * (machine.compute_units or 128)
    return span if total >= span * units else max(least, 1)


def group_tile(machine: Platform, total: int, size: int, bytes_read: int) -> Tile:
    """Whole groups: 64 bytes a lane in flight, and no fewer than four warps for narrow groups."""
    block = min(next_power_of_two(size), ONE_PASS)
    each = max(64 // bytes_read, 8)
    warps = max(4, min(16, block // (lanes(machine) * each)))
    span = max(1, warps * lanes(machine) * each // block)
    if total < 2 * (machine.compute_units or 128) * span:
        span = max(1, warps * lanes(machine) * 8 // block)
        warps = warps if span > 1 else max(4, min(16, block // (lanes(machine) * 8)))
    return Tile(span, block, warps)


def piece_tile(machine: Platform, rows: int, width: int, bytes_read: int) -> Tile:
    """Pieces of at most 1024 columns."""
    block = min(next_power_of_two(width), 1024)
    full = max(1, 4 * lanes(machine) * (64 // bytes_read) // block)
    least = 4 * lanes(machine) * 8 // block
    return Tile(_spread(machine, rows * -(-width // block), full, least), block, 4)


def block_tile(machine: Platform, total: int, bytes_read: int) -> Tile:
    """MX blocks of 32."""
    full = 4 * lanes(machine) * (64 // bytes_read) // 32
    return Tile(_spread(machine, total, full, 4 * lanes(machine) * 8 // 32), 32, 4)


def dequant_tile(machine: Platform, rows: int, width: int, group: int, bytes_written: int) -> Tile:
    """Pieces inside a group."""
    block = min(max(next_power_of_two(group), 2), 1024)
    pieces = rows * -(-width // group) * -(-group // block)
    full = max(1, 4 * lanes(machine) * (64 // bytes_written) // block)
    return Tile(_spread(machine, pieces, full, 4 * lanes(machine) * 8 // block), block, 4)
