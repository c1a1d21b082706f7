"""Single functions of a source file whose module cannot be imported here, for the packages it wants."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any


def functions_of(path: Path, names: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Those functions of the file at `path` as they stand there; they see each other and `given`, nothing else.

    Lines and file name are kept, so a compiler that asks for a function's source finds it. Raises ImportError for
    names that the file does not define.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    kept: list[ast.stmt] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
    if missing := set(names) - {n.name for n in kept if isinstance(n, ast.FunctionDef)}:
        raise ImportError(f"{path.name} has no {', '.join(sorted(missing))}")
    space: dict[str, Any] = {"__name__": f"cut_out_of_{path.stem}", **given}
    exec(compile(ast.Module(kept, []), str(path), "exec"), space)  # noqa: S102 - runs what importing the file would
    return space
