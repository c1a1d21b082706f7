"""Reads entry points from AITER's Python sources: parsed, never imported or run."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .table import Parameter, Row, Visible, parameters_of

REGISTERING = ("compile_ops", "torch_compile_guard")
"""AITER's decorators that register ``torch.ops.aiter.<name>`` and hide the signature of what they return."""


class Definition(NamedTuple):
    """A name that a module defines: its parameters, and how it shows them (see table.Visible)."""

    parameters: tuple[Parameter, ...]
    visible: Visible
    built: str = ""


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run at import, in order; of conditions and of `try` every branch."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            yield from _statements(statement.body)
            for handler in getattr(statement, "handlers", ()):
                yield from _statements(handler.body)
            yield from _statements(statement.orelse)


def _decorated(function: ast.FunctionDef) -> tuple[Visible, str]:
    visible: Visible = "python"
    built = ""
    for decorator in function.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name not in REGISTERING:
            continue
        visible = "schema"
        first = decorator.args[0] if isinstance(decorator, ast.Call) and decorator.args else None
        if name == "compile_ops" and isinstance(first, ast.Constant):
            built = str(first.value)
    return visible, built


def definitions(source: str) -> dict[str, Definition]:
    """What a module's source defines at its top level; SyntaxError where it is no Python."""
    found: dict[str, Definition] = {}
    for statement in _statements(ast.parse(source).body):
        if isinstance(statement, ast.FunctionDef):
            visible, built = _decorated(statement)
            found[statement.name] = Definition(parameters_of(statement.args), visible, built)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = Definition((), "value")
    return found


@functools.lru_cache(maxsize=64)
def _module(path: str) -> dict[str, Definition] | None:
    try:
        return definitions(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None


def module_path(root: str, module: str) -> Path:
    """The file of ``aiter.ops.x`` under the package folder `root`; a module, not a package."""
    return Path(root, *module.split(".")[1:]).with_suffix(".py")


def difference(root: str, name: str, row: Row) -> str | None:
    """How the sources in the package folder `root` differ from a row of the table, or None where they do not."""
    found = _module(str(module_path(root, row.module)))
    if found is None:
        return f"{row.module} is missing or cannot be parsed"
    if name not in found:
        return f"{row.module} has no {name}"
    return None if row.visible == "value" else changed(found[name].parameters, row.parameters)


def parameters_at(root: str, name: str, row: Row) -> tuple[Parameter, ...] | None:
    """The parameters of an entry in the sources in the package folder `root`; None where it is not there."""
    found = (_module(str(module_path(root, row.module))) or {}).get(name)
    return found and found.parameters


def changed(found: tuple[Parameter, ...], known: tuple[Parameter, ...], defaults: bool = True) -> str | None:
    """The first difference between two lists of parameters, in words; None where they are equal."""
    names, wanted = [p.name for p in found], [p.name for p in known]
    if more := [n for n in names if n not in wanted]:
        return f"it also takes {', '.join(more)}"
    if fewer := [n for n in wanted if n not in names]:
        return f"it has no {', '.join(fewer)}"
    if names != wanted:
        where = next(i for i, (a, b) in enumerate(zip(names, wanted, strict=False)) if a != b)
        return f"it takes {names[where]} where {wanted[where]} was"
    for a, b in zip(found, known, strict=True):
        if a.keyword_only != b.keyword_only:
            return f"{a.name} is {'' if a.keyword_only else 'not '}keyword-only"
        if defaults and a.default != b.default:
            return f"{a.name} is {a.default or 'without default'} by default, not {b.default or 'without default'}"
    return None
