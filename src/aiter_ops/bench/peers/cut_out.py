"""Single functions of a source file whose module cannot be imported here, for the packages it wants."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any


def functions_of(
    path: Path, names: tuple[str, ...], given: dict[str, Any], constants: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Those functions and constants of the file at `path` as they stand there; they see each other and `given` alone.

    Lines and file name are kept, so a compiler that asks for a function's source finds it. Raises ImportError for
    names that the file does not define.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    kept = [n for n in tree.body if _defined(n) in (*names, *constants)]
    if missing := {*names, *constants} - {_defined(n) for n in kept}:
        raise ImportError(f"{path.name} has no {', '.join(sorted(missing))}")
    space: dict[str, Any] = {"__name__": f"cut_out_of_{path.stem}", **given}
    exec(compile(ast.Module(kept, []), str(path), "exec"), space)  # noqa: S102 - runs what importing the file would
    return space


def _defined(statement: ast.stmt) -> str:
    """The name that a function or an assignment at the top of a file gives; empty for other statements."""
    if isinstance(statement, ast.FunctionDef):
        return statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return targets[0].id if isinstance(targets[0], ast.Name) else ""
