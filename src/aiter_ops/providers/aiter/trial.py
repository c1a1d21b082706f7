"""Imports this machine's AITER and prints what it found; run in a process of its own, for AITER can end it.

    python -m aiter_ops.providers.aiter.trial

The last line on stdout is JSON: `error` (why AITER cannot be used at all, or null), `found` (whether AMD's AITER is here),
`names` (how many ``import aiter`` leaves), `seconds`, and `entries` by name: null where it is as the table has it, else
what is wrong.
"""

from __future__ import annotations

import importlib
import json
import time
from typing import Any

from aiter_ops.core.platforms import platform

from . import call, probe
from .contract.table import Row, table


def _entry(name: str, row: Row) -> str | None:
    try:
        found = getattr(importlib.import_module(row.module), name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return probe.unlike(found, name, row)


def found() -> dict[str, Any]:
    """What importing AITER gives on this machine."""
    here, start = platform(), time.monotonic()
    if here.aiter_root is None:
        return {
            "error": here.aiter_fault or "AITER is not installed",
            "found": False,
            "names": 0,
            "seconds": 0.0,
            "entries": {},
        }
    error = None
    try:
        call._import_aiter()
    except call.BrokenAiter as broken:
        error = str(broken)
    entries, names = {}, 0
    if error is None:
        version = here.aiter or table().newest
        rows = {name: table().at(name, version) for name in table().entries}
        entries = {name: _entry(name, row) for name, row in rows.items() if row}
        names = len(dir(importlib.import_module("aiter")))
    return {
        "error": error,
        "found": True,
        "names": names,
        "seconds": round(time.monotonic() - start, 1),
        "entries": entries,
    }


if __name__ == "__main__":
    print("\n" + json.dumps(found()))
