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
    """invariant: stated to be batch invariant. cells: per architecture ``yes``, ``no: cause`` or ``served/samples
    (note)``.
    """

    family: str
    op: str
    provider: str
    invariant: bool
    cells: tuple[str, ...]


def _partly(entry: dict[str, Any], refused: dict[str, list[str]], arch: str, notes: Notes) -> str:
    """Served samples of all, with a note for each reason; what is refused is told by labels, not by sample names."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for sample, (key, reason) in refused.items():
        grouped.setdefault((key, reason.replace(arch, "the target")), []).append(entry["samples"][sample])
    texts = [f"{', '.join(dict.fromkeys(which))}: {_MEANING[k]}; {reason}" for (k, reason), which in grouped.items()]
    total = len(entry["samples"])
    numbers = ", ".join(map(str, sorted(notes.number(text) for text in texts)))
    return f"{total - len(refused)}/{total} ({numbers})"


def _cell(entry: dict[str, Any], cell: dict[str, list[str]], arch: str, notes: Notes) -> str:
    if not cell:
        return YES
    if "*" in cell or len(cell) == len(entry["samples"]):
        return "no: " + "/".join(dict.fromkeys(key for key, _ in cell.values()))
    return _partly(entry, cell, arch, notes)


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
                invariant = who in entry["batch_invariant"]
                yield Row(entry["family"], name, who, invariant, tuple(_cell(entry, cells[a], a, notes) for a in archs))


def legend(table: Collection[Row]) -> list[str]:
    """The causes that stand in these rows, explained."""
    cells = [cell for row in table for cell in row.cells if cell.startswith("no: ")]
    used = {key for cell in cells for key in cell.removeprefix("no: ").split("/")}
    lines = [f"{cause.key}: {cause.meaning}" for cause in Cause if cause.key in used]
    if any(row.invariant for row in table):
        lines.insert(
            0, "invariant: with AITER_OPS_BATCH_INVARIANT a row's result does not depend on the rest of the batch"
        )
    return lines


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
        text += [f"## {family}", ""]
        text += [f"| op | provider | invariant | {' | '.join(archs)} |", "|---|---|---" + "|---" * len(archs) + "|"]
        text += [
            f"| `{r.op}` | {r.provider} | {'yes' if r.invariant else ''} | {' | '.join(r.cells)} |"
            for r in table
            if r.family == family
        ]
        text.append("")
    if causes := legend(table):
        text += ["## Words", "", *[f"- {line}" for line in causes], ""]
    if notes.texts:
        text += ["## Notes", "", *[f"{n}. {note}" for n, note in enumerate(notes.texts, 1)], ""]
    return "\n".join(text)
