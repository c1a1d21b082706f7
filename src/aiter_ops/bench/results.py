"""The results file: written whole or not at all, read in every version there has been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

VERSION = 2


def saver(path: Path | None) -> Callable[[dict[str, Any]], None]:
    """Writes the results so far to `path`."""

    def save(found: dict[str, Any]) -> None:
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
        partial.replace(path)

    return save


def read(source: Path) -> dict[str, Any]:
    """A results file, as this version writes it; ValueError for anything else."""
    text = source.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--from {source}: not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("version") not in (1, VERSION) or "results" not in found:
        raise ValueError(f"--from {source}: not a results file of bench")
    return _from_first(found) if found["version"] == 1 else found


def _from_first(found: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had row-wise ops alone: rows and width instead of a case, and no peaks."""
    from .cases.rows import labels

    results = []
    for old in found["results"]:
        kept = {name: value for name, value in old.items() if name not in ("rows", "width")}
        results.append(kept | labels(old["rows"], old["width"]) | {"dots": None})
    return found | {"version": VERSION, "peaks": [], "results": results}
