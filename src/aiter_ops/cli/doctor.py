"""`aiter-ops doctor`: the machine, what is installed, what each provider can do here, and why not."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, UserError, console, find_ops, print_json, settings, shown

Names = Annotated[list[str] | None, typer.Argument(help="Ops or families, each told alone.", metavar="[OP]...")]
Trial = Annotated[bool, typer.Option("--import", help="Also import AITER, in a child process with a time limit.")]
Diff = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--diff", metavar="A.json B.json", help="Compare two files that doctor --json wrote."),
]


def command(names: Names = None, diff: Diff = None, trial: Trial = False, json: Json = False) -> None:
    """The machine, the versions, what every provider can serve here or why not, and the settings in force.

    With names, a line for each of these ops and provider, and the functions of AITER that it calls. No device is touched,
    and without --import AITER is not imported. Exit code 1: a provider that a rule asks for cannot serve; 3: a provider's
    module fails to import, or with --import its library.

    Example: aiter-ops doctor --json > here.json
    """
    from . import facts

    if diff:
        _show_differences(facts.differences(_read(diff[0]), _read(diff[1])), diff, json)
        return
    settings()
    wanted = [op.name for op in find_ops(names)] if names else None
    data = facts.report(trial)
    if wanted is not None:
        data["ops"] = [row for row in data["ops"] if row["op"] in wanted]
    if json:
        print_json(data)
    else:
        _show(data, wanted is not None)
    failed = [name for name, result in data["imports"].items() if result["error"] and result["found"]]
    if failed or any(row.get("broken") for row in data["providers"]):
        raise typer.Exit(3)
    if data["missed"]:
        raise typer.Exit(1)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json_module.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--diff {path}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict) or "platform" not in data or "providers" not in data:
        raise UserError(f"--diff {path}: accepted: a file written by aiter-ops doctor --json")
    return data


def _show_differences(rows: list[tuple[str, Any, Any]], files: tuple[Path, Path], json: bool) -> None:
    if json:
        print_json([{"path": path, "a": a, "b": b} for path, a, b in rows])
        return
    from rich.table import Table

    view = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", str(files[0]), str(files[1])):
        view.add_column(column)
    for path, a, b in rows:
        view.add_row(path, *[_plain(v) for v in (a, b)])
    out = console()
    if rows:
        out.print(view)
    out.print(f"{len(rows)} differences" if rows else "no differences")


def _plain(value: Any) -> str:
    from rich.markup import escape

    return "-" if value is None else escape(value if isinstance(value, str) else json_module.dumps(value))


def _show(data: dict[str, Any], each: bool) -> None:
    from rich.table import Table

    shown("doctor")
    out, here = console(), data["platform"]
    facts = [here["name"] if here["name"] == here["arch"] else f"{here['name']} ({here['arch']})"]
    if here["wave_size"]:
        facts.append(f"wave {here['wave_size']}")
    if here["compute_units"]:
        facts.append(f"{here['compute_units']} compute units")
    if here["lds"]:
        facts.append(f"LDS {here['lds'] // 1024} KiB")
    facts.append(f"FP8 is {here['fp8_dtype']}")
    out.print("[bold]machine[/bold]    ", end="")
    out.print(", ".join(facts), markup=False)
    versions = [f"{name} {version}" for name, version in data["versions"].items() if version]
    versions += [f"no {name}" for name in ("triton", "aiter") if not data["versions"][name]]
    out.print("[bold]versions[/bold]   ", end="")
    out.print(", ".join(versions), markup=False)
    if data["owners"]["triton"]:
        out.print(f"[bold]triton[/bold]     owned by {', '.join(data['owners']['triton'])}")
    for name, said in data["libraries"].items():
        for text in said:
            out.print(f"[bold]{name:<10}[/bold] ", end="")
            out.print(text, markup=False)
    for name, has in data["features"].items():
        if absent := [f"{feature} ({why})" for feature, why in has.items() if why]:
            out.print(f"[bold]{name:<10}[/bold] ", end="")
            out.print(f"without {', '.join(absent)}", markup=False)
    for name, result in data["imports"].items():
        wrong = {n: text for n, text in result["entries"].items() if text}
        style, text = "red", result["error"] or f"{len(wrong)} of {len(result['entries'])} functions are not as known"
        if not result["error"] and not wrong:
            style, text = "green", f"ends in {result['seconds']} s with {result['names']} names, all functions as known"
        out.print(f"[bold]import[/bold]     [{style}]{name}[/] ", end="")
        out.print(text, markup=False)
        for entry, why in wrong.items():
            out.print(f"           {entry}: {why}", markup=False)
    for warning in data["warnings"]:
        out.print("[bold yellow]warning[/bold yellow]    ", end="")
        out.print(warning, markup=False)
    out.print()
    view = Table(box=None, pad_edge=False, header_style="bold")
    first = ("op", "provider", "usable") if each else ("provider", "family", "usable")
    for column in (*first, "why not", "what to do"):
        view.add_column(column, no_wrap=column in first)
    for row in data["ops"] if each else data["providers"]:
        view.add_row(*(_op_cells(row) if each else _cells(row)))
    out.print(view)
    for row in data["ops"] if each else ():
        for call in row["calls"]:
            told = call["state"] or (f"{call['cold']} is not compiled yet" if call["cold"] else "as known")
            out.print(f"[dim]{row['op']} calls {call['place']}.{call['name']}:[/dim] ", end="")
            out.print(told, markup=False)
    out.print()
    if missed := data["missed"]:
        wishes = sorted({p for wish in missed.values() for p in wish})
        out.print(f"{', '.join(wishes)} asked for by a rule and not usable for: {', '.join(missed)}", style="red")
    if data["vllm"]["version"]:
        _show_vllm(data["vllm"])
    _show_settings(data)


def _show_vllm(data: dict[str, Any]) -> None:
    """What the plugin puts into vLLM, a row for each of vLLM's mechanisms."""
    from rich.markup import escape
    from rich.table import Table

    out, rows = console(), [row for row in data["overrides"] if row["registered"]]
    out.print("[bold]in vLLM[/bold]    ", end="")
    told = f"AITER_OPS_VLLM={data['mode']} puts the layer in these places of {data['distribution']} {data['version']}"
    out.print(f"nothing: {data['off']}" if data["off"] else told, markup=False)
    view = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("mechanism", "places"):
        view.add_column(column, no_wrap=column == "mechanism")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        view.add_row(kind, escape(", ".join(row["name"] for row in rows if row["kind"] == kind)))
    if rows:
        out.print(view)
    out.print()


def _cells(row: dict[str, Any]) -> list[str]:
    from rich.markup import escape

    usable, ops = len(row["served"]), row["ops"]
    style = "green" if usable == ops else "yellow" if usable else "dim"
    whole = len(row["reasons"]) == 1 and usable == 0
    reasons = "; ".join(r if whole else f"{n} {'op' if n == 1 else 'ops'}: {r}" for r, n in row["reasons"].items())
    count = f"[{style}]{usable} of {ops} ops[/]"
    return [row["provider"], row["family"], count, escape(reasons), escape(row["advice"])]


def _op_cells(row: dict[str, Any]) -> list[str]:
    from rich.markup import escape

    usable = "[dim]no[/]" if not row["usable"] else "[yellow]by arguments[/]" if row["arguments"] else "[green]yes[/]"
    return [row["op"], row["provider"], usable, escape(row["reason"] or row["note"] or ""), escape(row["advice"])]


def _show_settings(data: dict[str, Any]) -> None:
    out = console()
    out.print("[bold]settings[/bold]")
    for row in data["settings"]:
        text = f"{row['name']}={row['value']}" if row["value"] is not None else f"{row['name']} unset"
        out.print(f"  {text}", style="" if row["origin"] == "environment" else "dim", end="", markup=False)
        out.print(f"  ({row['origin']})", style="dim", markup=False)
    for rule in data["rules"]:
        out.print(f"  rule {rule}", markup=False)
    others = {n: v for n, v in data["environment"].items() if n not in [r["name"] for r in data["settings"]]}
    for name, value in others.items():
        out.print(f"  {name}={value}  (environment; read by us or AITER)", markup=False)
