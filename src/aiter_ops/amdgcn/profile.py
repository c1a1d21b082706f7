"""What a launch moved: bytes of memory and LDS, counted as it runs.

LDS is banks of 4 bytes, on RDNA two sets of 32, one for each pair of SIMDs (AMD, "RDNA3 Instruction Set Architecture",
chapter Data Share Operations); a workgroup is taken to use one of them.
The model of a conflict: lanes in their order, as many as can get one word of every bank at once
(32 lanes of 4 bytes, 16 of 8, 8 of 16; with 64 banks twice as many), are served together; that takes as many cycles as
the most different words that any bank is asked for. Equal words are read once. Reads of 16 bytes with 32 banks are served
in other groups of 8 lanes (AMD, Composable Kernel documentation, "Understanding AMD GPU LDS and Bank Conflicts", which has
them and those of writes); of 64 banks no document says the groups.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .memory import Memory

BANKS = {"gfx950": 64}
"""Banks of LDS, 32 on the other targets (a set of RDNA's)."""

_READ_16 = np.array(
    [
        32 * half + i
        for half in (0, 1)
        for first in (0, 4, 8, 12)
        for i in (*range(first, first + 4), *range((first ^ 4) + 16, (first ^ 4) + 20))
    ]
)
"""The lanes of a wave of 64 in the order in which 32 banks serve a read of 16 bytes, eight at a time: 0 to 3 with 20 to 23, 4
to 7 with 16 to 19, 8 to 11 with 28 to 31, 12 to 15 with 24 to 27, and the upper half so.
"""

LINE = 128
"""Bytes of a line of the L2 cache."""


class Profile:
    """requested: bytes that lanes asked memory for, by (store, size of one access); lines: distinct cache lines that the
    lanes of an instruction and wave touched, summed; left_out: regions that do not count. cycles, least: of LDS by instruction number, as the model above says,
    and without any conflict. read, written: by region of memory, which bytes were touched.
    """

    def __init__(self, target: str) -> None:
        self.banks = BANKS.get(target, 32)
        self.requested: Counter[tuple[bool, int]] = Counter()
        self.line, self.lines = LINE, 0
        self.left_out: set[int] = set()
        self.cycles: Counter[int] = Counter()
        self.least: Counter[int] = Counter()
        self.lds_bytes = 0
        self.read: dict[int, NDArray[np.bool_]] = {}
        self.written: dict[int, NDArray[np.bool_]] = {}

    def memory(
        self, memory: Memory, addresses: NDArray[np.uint64], active: NDArray[np.bool_], size: int, store: bool
    ) -> None:
        """An access of `size` bytes from the addresses [n, 64] of the `active` lanes."""
        at, waves = addresses[active], np.nonzero(active)[0].astype(np.uint64)
        region, offset = memory.located(at)
        kept = ~np.isin(region, list(self.left_out))
        at, waves, region, offset = at[kept], waves[kept], region[kept], offset[kept]
        self.requested[store, size] += size * len(at)
        first, last = at // np.uint64(LINE), (at + np.uint64(size - 1)) // np.uint64(LINE)
        # the lines of one wave: its number above the 40 bits that a line's number needs
        pairs = np.concatenate([first, last]) | np.concatenate([waves, waves]) << np.uint64(44)
        self.lines += len(np.unique(pairs))
        marks = self.written if store else self.read
        for r in np.unique(region):
            mark = marks.setdefault(int(r), np.zeros(len(memory.regions[r]), np.bool_))
            mark[offset[region == r][:, None] + np.arange(size)] = True

    def lds(
        self, instruction: int, at: NDArray[np.int64], on: NDArray[np.bool_], size: int, load: bool = False
    ) -> None:
        """An access of `size` bytes from the places [n, 64] of the lanes that are on; load: it reads."""
        if load and size == 16 and self.banks == 32 and at.shape[1] == 64:
            at, on = at[:, _READ_16], on[:, _READ_16]
        words = -(-size // 4)
        together = self.banks // (1 << (words - 1).bit_length())
        asked = np.where(on[:, :, None], (at // 4)[:, :, None] + np.arange(words), -1)
        rows = np.sort(asked.reshape(-1, together * words), axis=1)
        new = np.ones(rows.shape, np.bool_)
        new[:, 1:] = rows[:, 1:] != rows[:, :-1]
        new &= rows >= 0
        row, place = np.nonzero(new)
        hits = np.bincount(row * self.banks + rows[row, place] % self.banks, minlength=len(rows) * self.banks)
        self.cycles[instruction] += int(hits.reshape(-1, self.banks).max(axis=1).sum())
        self.least[instruction] += int((-(-new.sum(axis=1) // self.banks)).sum())
        self.lds_bytes += size * int(on.sum())

    @property
    def distinct_read(self) -> int:
        """Bytes read at least once."""
        return sum(int(m.sum()) for m in self.read.values())

    @property
    def distinct_written(self) -> int:
        return sum(int(m.sum()) for m in self.written.values())

    def requested_bytes(self, store: bool) -> int:
        return sum(n for (kind, _), n in self.requested.items() if kind is store)
