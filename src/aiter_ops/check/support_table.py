"""The support matrix as rows for people: one line an op and provider, one column an architecture, notes below."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from .support import ARCHS, Cause

YES = "yes"
_MEANING = {cause.key: cause.meaning for cause in Cause}


@dataclass
class Notes:
    """Numbered texts; the same text has the same number."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


@dataclass(frozen=True)
class Row:
    """cells: per architecture ``yes``, ``no: cause`` or ``served/samples (note)``."""

    family: str
    op: str
    provider: str
    cells: tuple[str, ...]


def _partly(entry: dict[str, Any], refused: dict[str, list[str]], notes: Notes) -> str:
    grouped: dict[tuple[str, str], list[str]] = {}
    for sample, (key, reason) in refused.items():
        grouped.setdefault((key, reason), []).append(f"{entry['samples'][sample]} ({sample})")
    texts = [f"{', '.join(which)}: {_MEANING[key]}; {reason}" for (key, reason), which in grouped.items()]
    total = len(entry["samples"])
    numbers = ", ".join(str(notes.number(text)) for text in texts)
    return f"{total - len(refused)}/{total} ({numbers})"


def _cell(entry: dict[str, Any], cell: dict[str, list[str]], notes: Notes) -> str:
    if not cell:
        return YES
    if "*" in cell:
        return f"no: {cell['*'][0]}"
    keys = {key for key, _ in cell.values()}
    if len(cell) == len(entry["samples"]) and len(keys) == 1:
        return f"no: {keys.pop()}"
    return _partly(entry, cell, notes)


def rows(
    data: dict[str, Any],
    notes: Notes,
    ops: Collection[str] | None = None,
    provider: str | None = None,
    archs: Collection[str] = ARCHS,
) -> Iterator[Row]:
    """Rows of the chosen ops (None: all), provider and architectures; `notes` collects what is served in part."""
    order = sorted(data["ops"], key=lambda name: (data["ops"][name]["family"], name))
    for name in order:
        entry = data["ops"][name]
        for who, cells in entry["cells"].items():
            if (ops is None or name in ops) and provider in (None, who):
                yield Row(entry["family"], name, who, tuple(_cell(entry, cells[a], notes) for a in archs))


def legend(table: Collection[Row]) -> list[str]:
    """The causes that stand in these rows, explained."""
    used = {cell.removeprefix("no: ") for row in table for cell in row.cells if cell.startswith("no: ")}
    return [f"{cause.key}: {cause.meaning}" for cause in Cause if cause.key in used]


def markdown(
    data: dict[str, Any],
    ops: Collection[str] | None = None,
    provider: str | None = None,
    archs: Collection[str] = ARCHS,
) -> str:
    """The tables of docs/support.md, one a family."""
    notes = Notes()
    table = list(rows(data, notes, ops, provider, archs))
    text: list[str] = []
    for family in dict.fromkeys(row.family for row in table):
        text += [f"## {family}", "", f"| op | provider | {' | '.join(archs)} |", "|---|---" + "|---" * len(archs) + "|"]
        text += [f"| `{r.op}` | {r.provider} | {' | '.join(r.cells)} |" for r in table if r.family == family]
        text.append("")
    if causes := legend(table):
        text += ["## Causes", "", *[f"- {line}" for line in causes], ""]
    if notes.texts:
        text += ["## Notes", "", *[f"{n}. {note}" for n, note in enumerate(notes.texts, 1)], ""]
    return "\n".join(text)
