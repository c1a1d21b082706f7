"""What every command shares: the console, JSON output, errors of one line, the --use option."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from aiter_ops.core.op import Op
    from aiter_ops.core.platforms import Platform
    from aiter_ops.core.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Use = Annotated[str, typer.Option("--use", metavar="RULES", help="Rules as in AITER_OPS, e.g. norm=triton,-aiter.")]
Strict = Annotated[bool, typer.Option("--strict", help="A requested provider that cannot serve is an error.")]

PIPE_WIDTH = 120
"""Columns where stdout is no terminal."""


class UserError(Exception):
    """One line for the user. code: 2 for usage, 1 for something that is not served, 3 for a probe that failed."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # `main` ends the process in peace; rich would exit with 1


_console: Console | None = None
_picture: Path | None = None


def begin(picture: Path | None) -> None:
    """Start a command. picture: where its output goes as SVG, at `finish`."""
    global _console, _picture
    _picture = picture
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    if picture is None:
        _console = _Console(width=wide, highlight=False)
    else:
        _console = _Console(
            record=True, width=PIPE_WIDTH, highlight=False, force_terminal=True, color_system="truecolor"
        )


def finish() -> None:
    if _picture is not None and _console is not None:
        # the font a viewer has, instead of one fetched from a server
        svg = re.sub(r"@font-face \{[^}]*\}\s*", "", _console.export_svg(title="aiter-ops"))
        _picture.write_text(svg, encoding="utf-8")


def console() -> Console:
    """Where a command prints its tables."""
    if _console is None:
        begin(None)
    assert _console is not None
    return _console


def shown(command: str) -> None:
    """In a picture, the command line above its output."""
    if _picture is not None:
        console().print(f"[bold]$ aiter-ops {command}[/bold]\n")


def progress_console() -> Console:
    """stderr, where progress goes; silent where nobody watches."""
    return Console(stderr=True, quiet=not sys.stderr.isatty())


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def settings() -> Settings:
    """The settings in force. UserError for values and plugins that cannot be taken."""
    from aiter_ops.core import runtime

    try:
        return runtime.settings()
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None


@contextlib.contextmanager
def using(rules: str, strict: bool = False) -> Iterator[None]:
    """The rules of --use for what follows, over those of the environment."""
    from aiter_ops.core.policy import SettingsError
    from aiter_ops.core.runtime import use

    settings()
    if not rules and not strict:
        yield
        return
    context = use(rules, strict or None)
    try:
        context.__enter__()
    except SettingsError as error:
        raise UserError(str(error).replace("use()", "--use", 1)) from None
    try:
        yield
    finally:
        context.__exit__(None, None, None)


def find_op(name: str) -> Op:
    """UserError with the nearest known name."""
    from aiter_ops.core.op import get_op

    try:
        return get_op(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def find_ops(names: list[str] | None) -> list[Op]:
    """Ops by names of ops or families; all without names."""
    from aiter_ops.core.op import list_ops

    every = list_ops()
    families = {op.family for op in every}
    if not names:
        return list(every)
    chosen: dict[str, Op] = {}
    for name in names:
        for op in [o for o in every if o.family == name] if name in families else [find_op(name)]:
            chosen[op.name] = op
    return list(chosen.values())


def find_provider(name: str | None) -> str | None:
    """UserError for a provider that is not known."""
    from aiter_ops.core.provider import provider_names

    settings()
    if name is not None and name not in provider_names():
        raise UserError(f"--provider {name!r}; accepted: {', '.join(provider_names())}")
    return name


As = Annotated[str | None, typer.Option("--as", metavar="ARCH", help="Answer for this machine: gfx950, sm_90, cpu.")]
Aiter = Annotated[str | None, typer.Option(metavar="RELEASE", help="With --as: the AITER there, e.g. 0.1.16.")]
Rocm = Annotated[str | None, typer.Option(metavar="RELEASE", help="With --as: the ROCm there, e.g. 7.2.")]
Sources = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="With --aiter: a folder that holds the package aiter, to judge it by; 'newest': as the newest known release.",
    ),
]


def _package(folder: str) -> str:
    """AITER's package folder in a checkout, an unpacked wheel or a site-packages; or the folder itself."""
    for root in (Path(folder) / "aiter", Path(folder)):
        if (root / "jit" / "core.py").is_file():
            return str(root)
    raise UserError(f"--sources {folder}: accepted: 'newest', or a folder with AITER's package in it")


def other_platform(
    arch: str | None, aiter: str | None = None, rocm: str | None = None, sources: str | None = None
) -> Platform:
    """The platform of --as, --aiter, --rocm and --sources."""
    from aiter_ops.core.platforms import AS_NEWEST, platform_for

    given = {"--aiter": aiter, "--rocm": rocm, "--sources": sources}
    if arch is None:
        name, value = next((n, v) for n, v in given.items() if v is not None)
        raise UserError(f"{name} {value}: needs --as ARCH; of this machine it is read from what is installed")
    for name, value in (("--aiter", aiter), ("--rocm", rocm)):
        if value is not None and not re.match(r"\d+\.\d+", value):
            raise UserError(f"{name} {value!r}; accepted: a release such as {'0.1.16' if name == '--aiter' else '7.2'}")
    if sources is not None and aiter is None:
        raise UserError(f"--sources {sources}: needs --aiter RELEASE, which these sources are taken for")
    root = AS_NEWEST if sources == "newest" else _package(sources) if sources else None
    facts = {"aiter": aiter, "hip": rocm, "aiter_root": root}
    try:
        return platform_for(arch, **{n: v for n, v in facts.items() if v is not None})
    except ValueError as error:
        raise UserError(str(error).replace("arch=", "--as ", 1)) from None
