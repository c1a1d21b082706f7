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
