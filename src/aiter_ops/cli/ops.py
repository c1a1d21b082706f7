"""`aiter-ops ops`: the support matrix, from the table that is checked in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    Aiter,
    As,
    Json,
    Rocm,
    Sources,
    UserError,
    console,
    find_ops,
    find_provider,
    other_platform,
    print_json,
    settings,
    shown,
)

if TYPE_CHECKING:
    from aiter_ops.core.op import Op
    from aiter_ops.core.platforms import Platform

Names = Annotated[list[str] | None, typer.Argument(help="Ops or families; without any: all.", metavar="[OP]...")]
ProviderName = Annotated[str | None, typer.Option(help="Only this provider.")]


def command(
    names: Names = None,
    provider: ProviderName = None,
    arch: As = None,
    aiter: Aiter = None,
    rocm: Rocm = None,
    sources: Sources = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
    json: Json = False,
) -> None:
    """The support matrix: which provider serves which op on which architecture, or why not.

    With --as and --aiter, --rocm or --sources: who would serve each op on that machine, decided now from data alone.

    Example: aiter-ops ops norm --as gfx950 --rocm 7.2 --aiter 0.1.16
    """
    from aiter_ops.check import support, support_table

    if aiter or rocm or sources:
        if markdown or provider:
            raise UserError(
                f"{'--markdown' if markdown else '--provider'}: not together with --aiter, --rocm, --sources"
            )
        _decide(find_ops(names), other_platform(arch, aiter, rocm, sources), json)
        return
    data = support.load()
    chosen = [op.name for op in find_ops(names)]
    find_provider(provider)
    if arch is not None and arch not in support.ARCHS:
        raise UserError(f"--as {arch!r}; accepted: {', '.join(support.ARCHS)}")
    archs = (arch,) if arch else support.ARCHS
    if markdown and json:
        raise UserError("--markdown and --json: accepted: one of them")
    if json:
        ops = {name: data["ops"][name] for name in chosen if name in data["ops"]}
        for name, entry in ops.items():
            cells = {
                who: {a: cell[a] for a in archs} for who, cell in entry["cells"].items() if provider in (None, who)
            }
            ops[name] = {**entry, "cells": cells}
        print_json({"aiter": data["aiter"], "archs": list(archs), "ops": ops})
        return
    if markdown:
        print(support_table.markdown(data, chosen, provider, archs))
        return
    from rich.table import Table

    notes = support_table.Notes()
    table = list(support_table.rows(data, notes, chosen, provider, archs))
    shown(" ".join(["ops", *(names or [])]))
    out = console()
    view = Table(box=None, pad_edge=False, header_style="bold")
    view.add_column("op", no_wrap=True)
    view.add_column("provider", no_wrap=True)
    view.add_column("invariant", no_wrap=True)
    for a in archs:
        view.add_column(a, no_wrap=True)
    last = ""
    for row in table:
        cells = [f"[{_style(c)}]{c.removeprefix('no: ')}[/]" for c in row.cells]
        view.add_row("" if row.op == last else row.op, row.provider, "yes" if row.invariant else "", *cells)
        last = row.op
    wide = out.measure(view, options=out.options.update(max_width=1000)).maximum
    out.width = max(out.width, wide)  # longer lines rather than cut ones
    out.print(view)
    out.print()
    for line in support_table.legend(table):
        out.print(f"[dim]{line}[/dim]")
    for n, note in enumerate(notes.texts, 1):
        out.print(f"({n}) {note}", markup=False, style="dim")
    out.print(f"[dim]AMD columns with AITER {data['aiter']}; served means accepted, proof is `aiter-ops verify`[/dim]")


def _decide(chosen: list[Op], machine: Platform, json: bool) -> None:
    """A line an op: who serves it on a machine that is not here, and why each one before was passed over."""
    from rich.markup import escape
    from rich.table import Table

    from aiter_ops.check.decisions import decision
    from aiter_ops.core import runtime

    settings()
    made = [decision(op, machine, runtime.policy()) for op in chosen]
    if json:
        print_json({"platform": machine.as_dict(), "ops": [d.as_dict() for d in made]})
        return
    view = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("op", "serves", "sample", "passed over"):
        view.add_column(column, no_wrap=column in ("op", "serves"))
    for d in made:
        served = next(i for i, (_, taken, _) in enumerate(d.reasons) if taken)
        before = [f"{name}: {reason}" for name, _, reason in d.reasons[:served]]
        note = d.reasons[served][2].partition("; ")[2]
        view.add_row(d.op, d.provider, escape(d.arguments), escape("; ".join([*before, *([note] if note else [])])))
    versions = [f"{n} {v}" for n, v in (("AITER", machine.aiter), ("ROCm", machine.hip)) if v]
    shown(" ".join(["ops", "--as", machine.arch]))
    console().print(view)
    console().print(f"[dim]as {', '.join([machine.arch, *versions])}; served means accepted[/dim]")


def _style(cell: str) -> str:
    return "green" if cell == "yes" else "dim" if cell.startswith("no: ") else "yellow"
