"""The checked-in table of AITER's entry points, release by release, and how a version stands to it."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aiter_ops.core.evidence import in_window, version_key

DATA = Path(__file__).with_name("releases.json")

Visible = Literal["python", "schema", "value"]
"""How a running AITER shows an entry's parameters: by `inspect.signature`; only as the schema of ``torch.ops.aiter.*``,
for AITER's decorators put ``(*args, **kwargs)`` in place of the signature; or not at all (a value, such as an enum)."""

COMMIT = re.compile(r"(^|\.)(g[0-9a-f]{6,}|git\w*|d20\d{6}|dirty)(\.|$)")
"""A local version part (behind ``+``) that names a commit or a changed tree, unlike ``rocm7.2``."""

Standing = Literal["known", "newer", "unlisted"]


class Parameter(NamedTuple):
    """One parameter; `default` is its text in AITER's sources, None where there is none."""

    name: str
    default: str | None = None
    keyword_only: bool = False


class Row(NamedTuple):
    """One form of an entry: releases first <= AITER < last (None: still so in the newest one).

    built: AITER's extension module (``module_rmsnorm``) that the entry compiles or loads itself; empty where it is
    Python or Triton, or calls others that do. text: the parameters as Python would write them.
    """

    first: str
    last: str | None
    module: str
    visible: Visible
    built: str
    text: str

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return parameters(self.text)

    def signature(self) -> inspect.Signature:
        """For binding calls. A default that is no literal is its text, such as ``"dtypes.fp32"``."""
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        return inspect.Signature(
            [inspect.Parameter(p.name, kinds[p.keyword_only], default=literal(p.default)) for p in self.parameters]
        )


def literal(default: str | None) -> Any:
    """The value of a default's text; the text itself where it is no literal; inspect's `empty` for None."""
    if default is None:
        return inspect.Parameter.empty
    try:
        return ast.literal_eval(default)
    except (ValueError, SyntaxError):  # a name, or what `repr` makes of an object
        return default


@functools.cache
def parameters(text: str) -> tuple[Parameter, ...]:
    """The parameters that a text like ``x, eps=1e-06, *, out=None`` says."""
    function = ast.parse(f"def entry({text}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    return parameters_of(function.args)


def parameters_of(args: ast.arguments) -> tuple[Parameter, ...]:
    """The parameters of a parsed definition; ``*args`` and ``**kwargs`` are named as they are written."""
    plain = [*args.posonlyargs, *args.args]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults))
    found = [Parameter(a.arg, d and ast.unparse(d)) for a, d in zip(plain, missing + list(args.defaults), strict=True)]
    found += [Parameter(f"*{args.vararg.arg}")] if args.vararg else []
    found += [
        Parameter(a.arg, d and ast.unparse(d), True) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    return (*found, *([Parameter(f"**{args.kwarg.arg}")] if args.kwarg else []))


def text_of(found: tuple[Parameter, ...]) -> str:
    """The inverse of `parameters`."""
    words, starred = [], False
    for p in found:
        if p.keyword_only and not starred:
            words.append("*")
        starred = starred or p.keyword_only or p.name.startswith("*")
        words.append(p.name if p.default is None else f"{p.name}={p.default}")
    return ", ".join(words)


class Table(NamedTuple):
    """All of releases.json: releases in order, and an entry's rows in order, by name."""

    releases: tuple[str, ...]
    entries: dict[str, tuple[Row, ...]]

    @property
    def newest(self) -> str:
        return self.releases[-1]

    def at(self, name: str, version: str) -> Row | None:
        """The entry as a version should have it, or None; a version that is too new is read as the newest known."""
        known = self.newest if self.beyond(version) else version
        return next((row for row in self.entries[name] if in_window(known, (row.first, row.last))), None)

    def beyond(self, version: str) -> bool:
        """Whether a version is newer than the table; ``assumed``, a release nobody names, counts as the newest."""
        return version == "assumed" or version_key(version) > version_key(self.newest)

    def standing(self, version: str) -> Standing:
        """known: a release of the table. newer: past it. unlisted: a development build, or a release between."""
        if version == "assumed":
            return "known"
        release, _, local = version.partition("+")
        if release in self.releases and not COMMIT.search(local):
            return "known"
        return "newer" if version_key(version) > version_key(self.newest) else "unlisted"

    def first_with(self, name: str, parameter: str) -> str | None:
        """The first release whose entry has a parameter of that name."""
        rows = self.entries[name]
        return next((r.first for r in rows if parameter in [p.name for p in r.parameters]), None)


@functools.cache
def table() -> Table:
    """The table, read once."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    return Table(tuple(data["releases"]), {n: tuple(Row(*row) for row in rows) for n, rows in data["entries"].items()})
