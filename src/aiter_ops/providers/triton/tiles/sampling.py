"""How rows of logits are cut into parts, and what a program of a sampling kernel holds at a time.

Nothing here changes a token: masses are integers and the race has no sums, so parts may follow the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from aiter_ops.core.platforms import Platform

MOST_PARTS = 64
"""Parts of a row in the passes that read nothing of other parts but one number."""

MOST_COUNTED = 16
"""Parts of a row in the passes over its histograms: every program reads those of all parts."""

MOST_LISTED = 4096
"""Candidates of a row that one program searches."""

UNITS = 128
"""Compute units of a machine that is not here."""


@dataclass(frozen=True)
class SampleTile:
    """A row is cut into `parts` (at most `most_parts`) of `chunk` columns, done `block` at a time."""

    parts: int
    chunk: int
    block: int
    num_warps: int
    most_parts: int = MOST_PARTS


@lru_cache(4096)
def sample_tile(machine: Platform, rows: int, columns: int, most: int = MOST_PARTS, block: int = 4096) -> SampleTile:
    """256 threads a program; enough parts for two programs a compute unit, of whole blocks each."""
    blocks = -(-columns // block)
    wanted = -(-2 * (machine.compute_units or UNITS) // max(1, rows))
    each = -(-blocks // min(blocks, max(1, wanted), most))
    return SampleTile(-(-blocks // each), each * block, block, 256 // (machine.wave_size or 32), most)
