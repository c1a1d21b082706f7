"""Read the King James text and split it by whole chapters.

The corpus file holds one verse a line, ``Ge1:1 In the beginning ...``, which is what
Debian's ``bible -f gen1:1-rev22:21`` prints. A document is one chapter: its verses,
without their numbers, one a line.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VERSE = re.compile(r"^(\d?[A-Za-z]+\d+):\d+ +(\S.*)$")
SHINGLE = 8


@dataclass(frozen=True)
class Split:
    """Chapters of the corpus: to fit on, to choose checkpoints with, and to report on."""

    train: list[str]
    dev: list[str]
    validation: list[str]

    def describe(self) -> str:
        """One line with the chapters and bytes of every part."""
        parts = (("train", self.train), ("dev", self.dev), ("validation", self.validation))
        return ", ".join(f"{name} {len(docs)} chapters / {size(docs)} bytes" for name, docs in parts)


def size(documents: Sequence[str]) -> int:
    """UTF-8 bytes of ``documents``."""
    return sum(len(document.encode()) for document in documents)


def read_chapters(path: Path) -> list[str]:
    """The chapters of the corpus file in their order, as text."""
    chapters: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = VERSE.match(line)
        if match is None:
            raise ValueError(f"{path}:{number}: not a verse: {line[:60]!r}")
        chapters.setdefault(match[1], []).append(match[2].strip())
    return ["\n".join(verses) for verses in chapters.values()]


def repeated_share(chapters: Sequence[str]) -> list[float]:
    """For every chapter, the share of its eight-word runs that another chapter has too."""
    runs: list[set[str]] = []
    owners: dict[str, int] = defaultdict(int)
    for chapter in chapters:
        words = re.findall(r"[a-z]+", chapter.lower())
        found = {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
        runs.append(found)
        for run in found:
            owners[run] += 1
    return [sum(owners[run] > 1 for run in found) / max(1, len(found)) for found in runs]


def split_chapters(
    chapters: Sequence[str],
    seed: int,
    validation: float = 0.05,
    dev: float = 0.02,
    block: int = 4,
    max_repeated: float = 0.1,
) -> Split:
    """Draw validation and dev as runs of ``block`` neighbouring chapters.

    Some chapters repeat others almost word for word (Isaiah 37 and 2 Kings 19, Psalms 14
    and 53). A run holding a chapter that shares more than ``max_repeated`` of its
    eight-word runs with another one stays in train, so that nothing leaks.
    """
    repeated = repeated_share(chapters)
    blocks = [range(i, min(i + block, len(chapters))) for i in range(0, len(chapters), block)]
    random.Random(seed).shuffle(blocks)
    total = size(chapters)
    wanted = {"validation": validation * total, "dev": dev * total}
    taken: dict[str, set[int]] = {"validation": set(), "dev": set()}
    for candidate in blocks:
        if max(repeated[i] for i in candidate) > max_repeated:
            continue
        for part, limit in wanted.items():
            if size([chapters[i] for i in taken[part]]) < limit:
                taken[part].update(candidate)
                break
    held_out = taken["validation"] | taken["dev"]
    return Split(
        train=[c for i, c in enumerate(chapters) if i not in held_out],
        dev=[chapters[i] for i in sorted(taken["dev"])],
        validation=[chapters[i] for i in sorted(taken["validation"])],
    )


def excerpt(documents: Sequence[str], limit: int = 24_000) -> list[str]:
    """Leading documents of at most ``limit`` bytes together (at least one)."""
    chosen: list[str] = []
    for document in documents:
        if chosen and size([*chosen, document]) > limit:
            break
        chosen.append(document)
    return chosen
