"""How many rows of logits a program routes, and how the sorting of slots by expert is split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from aiter_ops.core.platforms import Platform

from .norm import next_power_of_two

EACH = 8
"""Experts a lane holds of a row, where a row has enough: a 16-byte load of 2-byte logits."""

MOST_EACH = 64
"""Experts a lane can hold; wider rows take more warps."""


@dataclass(frozen=True)
class RouteTile:
    """rows: rows a program does at once; groups × size: experts it holds of each (powers of two); num_warps."""

    rows: int
    groups: int
    size: int
    num_warps: int


@lru_cache(1024)
def route_tile(machine: Platform, experts: int, groups: int) -> RouteTile:
    """The tile does not depend on the number of rows, so that a row's sums are added in one order in any batch.

    One warp to a program: a row that several warps share needs barriers in every round.
    """
    lanes = machine.wave_size or 32
    width = next_power_of_two(groups), next_power_of_two(experts // groups)
    total = width[0] * width[1]
    return RouteTile(max(1, lanes * EACH // total), *width, min(max(1, total // (lanes * MOST_EACH)), 16))


ALONE = 256
"""Up to so many slots one program sorts alone. A step of 128 slots took it 3 to 6 µs on an H100 (128 to 512 experts), and
two launches with one step each 7 µs in all (8 experts); the number itself was not tuned on a GPU."""

MOST_CHUNKS = 128
"""Every program reads the counts of all chunks, so their number stays near that of compute units."""


@dataclass(frozen=True)
class AlignTile:
    """Slots are cut into `chunks` of `chunk`, one to a program, done `step` at a time; bins: experts rounded up to a
    power of two, at least as many as a warp has lanes, to which a histogram rounds them; table: chunks whose counts are read
    together; lines: slots held against a step's at a time.
    """

    chunks: int
    chunk: int
    step: int
    bins: int
    table: int
    lines: int
    num_warps: int


@lru_cache(4096)
def align_tile(machine: Platform, slots: int, experts: int) -> AlignTile:
    """256 threads a program; a step is short, for every slot in it is compared with every other."""
    step = min(128, max(16, next_power_of_two(slots)))
    lanes = machine.wave_size or 32
    bins = max(lanes, next_power_of_two(experts))
    chunk = -(-slots // step) * step
    if slots > ALONE:
        chunk = -(-slots // (MOST_CHUNKS * step)) * step
    return AlignTile(-(-slots // chunk), chunk, step, bins, max(1, 4096 // bins), min(16, step), 256 // lanes)
