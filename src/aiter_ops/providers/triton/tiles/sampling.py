"""How rows of logits are cut into parts, and what a program of a sampling kernel holds at a time.

Nothing here changes a token: masses are integers and the race has no sums, so parts may follow the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from aiter_ops.core.platforms import Platform

MOST_PARTS = 64
"""Parts of a row: every program that searches reads the histograms of all."""

MOST_LISTED = 4096
"""Candidates of a row that one program searches."""

BLOCK, BLOCK_AMD = 4096, 2048
"""Columns a program of 256 threads does at a time. On AMD 8 a thread: a lane's conditions take scalar registers there."""

THREADS_SEARCHING = 512
"""Of the program that searches a list: 8 candidates a thread."""

UNITS = 128
"""Compute units of a machine that is not here."""


@dataclass(frozen=True)
class SampleTile:
    """A row is cut into `parts` (at most `most_parts`) of `chunk` columns, done `block` at a time by
    `num_warps` warps; `search_warps` warps search a list of candidates."""

    parts: int
    chunk: int
    block: int
    num_warps: int
    search_warps: int
    most_parts: int = MOST_PARTS


@lru_cache(4096)
def sample_tile(machine: Platform, rows: int, columns: int) -> SampleTile:
    """256 threads a program; enough parts for two programs a compute unit, of whole blocks each."""
    block = BLOCK_AMD if machine.vendor == "amd" else BLOCK
    lanes = machine.wave_size or 32
    blocks = -(-columns // block)
    wanted = -(-2 * (machine.compute_units or UNITS) // max(1, rows))
    each = -(-blocks // min(blocks, wanted, MOST_PARTS))
    return SampleTile(-(-blocks // each), each * block, block, 256 // lanes, THREADS_SEARCHING // lanes)
