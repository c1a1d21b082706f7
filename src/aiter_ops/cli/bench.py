"""``aiter-ops bench``: how fast the implementations are here, beside others and beside what the machine can do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

FINE, FAILED, USAGE, PROBE_FAILED = 0, 1, 2, 3


def command(
    ops: Annotated[str | None, typer.Option(help="Ops, separated by commas. Default: all.")] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="norm, activation, quant, gemm, routing, moe, attention, mla, rope, kv_cache, sampling; by commas."
        ),
    ] = None,
    rows: Annotated[str | None, typer.Option(help="Row or token counts. Default: those of the family.")] = None,
    widths: Annotated[str | None, typer.Option(help="Widths of row-wise ops. Default: 4096,7168,8192.")] = None,
    names: Annotated[
        str | None, typer.Option("--cases", help="Only cases with one of these words in their name, e.g. Qwen3.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--contenders", help="Contenders, libraries or kinds (ours, torch, peer); -name: all but it. Default: all."
        ),
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(help="Folder with vllm/*.so, sglang_kernel/*.so, python/<package>; else installed ones."),
    ] = None,
    compiled: Annotated[
        str, typer.Option("--compile", help="Cases torch.compile takes part in: none, large or all.")
    ] = "large",
    seconds: Annotated[float, typer.Option(help="Time for the replays of one op at one case.", min=0.01)] = 0.3,
    minutes: Annotated[
        float, typer.Option(help="Time for the whole run; no case is begun after it. 0: without end.", min=0.0)
    ] = 0.0,
    workers: Annotated[
        int, typer.Option(help="Processes that compile ahead of timing; 0: one less than cores.", min=0)
    ] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two cases an op, no torch.compile; by default row-wise ops.")
    ] = False,
    rules: Annotated[str, typer.Option("--use", metavar="RULES", help="Rules as in AITER_OPS, e.g. -aiter.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Results; a table goes beside it as .md. -: stdout.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture of the results (extra: plot).")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Measure nothing; read a results file.")] = None,
) -> None:
    """Time the implementations of ops side by side.

    Example: aiter-ops bench --family norm --rows 8192 --json results.json --plot results.png
    """
    from aiter_ops.core.policy import SettingsError

    try:
        if source is not None:
            from aiter_ops.bench.results import read

            found = read(source)
        else:
            import torch

            from aiter_ops.bench.cases import Shapes
            from aiter_ops.bench.contenders import Selection
            from aiter_ops.bench.session import Session, measure_all

            shapes = Shapes(
                numbers("--rows", rows) or None,
                numbers("--widths", widths) or None,
                tuple(words(names)),
                quick,
                torch.cuda.is_available(),
            )
            if compiled not in ("none", "large", "all"):
                raise ValueError(f"--compile {compiled}: accepted: none, large, all")
            if peers is not None and not peers.is_dir():
                raise ValueError(f"--peers {peers}: no such folder")
            compile_for: Any = "none" if quick else compiled
            found = measure_all(
                Session(
                    choose_ops(ops, family, quick),
                    shapes,
                    Selection(choose_contenders(only), compile_for),
                    min(seconds, 0.05) if quick else seconds,
                    workers,
                    rules,
                    peers,
                    None if json_file is None or str(json_file) == "-" else json_file,
                    minutes,
                ),
                tell,
            )
        code = finish(found, json_file, plot)
    except (SettingsError, ValueError, OSError) as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(USAGE) from None
    raise typer.Exit(code)


def finish(found: dict[str, Any], json_file: Path | None, plot: Path | None) -> int:
    """Write table and picture, print the summary and every miss; the exit code."""
    from aiter_ops.bench import analysis, report

    if json_file is not None and str(json_file) == "-":
        print(json.dumps(found, indent=1))
    else:
        show(found)
        if json_file is not None:
            table = json_file.with_suffix(".md")
            table.parent.mkdir(parents=True, exist_ok=True)
            table.write_text(report.markdown(found), encoding="utf-8")
            tell(f"wrote {table}")
    if plot is not None:
        try:
            from aiter_ops.bench.plot import draw

            draw(found, plot)
            tell(f"wrote {plot}")
        except ImportError:
            tell("--plot needs matplotlib: pip install 'aiter-ops[plot]'")
            return PROBE_FAILED
    wrong = [f"{r['op']} {r['case']}: {n}: {why}" for r in found["results"] for n, why in r["wrong"].items()]
    for line in wrong:
        tell(f"failed: {line}")
    return FAILED if wrong or analysis.invalid(found) else FINE


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from aiter_ops.bench import analysis, report, targets

    wide = Console(width=None if sys.stdout.isatty() else 160)
    grid = Table(title=f"{found['machine']['device']}, {found['date']}")
    for i, name in enumerate(report.SUMMARY_HEAD):
        grid.add_column(name, justify="left" if i < 2 else "right")
    for cells in report.summary(found):
        grid.add_row(*cells)
    wide.print(grid)
    if found["timer"] == "wall":
        wide.print("No GPU here: wall time of the references on the CPU; nothing else was timed.")
        return
    if problem := analysis.invalid(found):
        wide.print(f"This run is invalid: {problem}.", style="bold red")
    missed = targets.misses(found)
    wide.print(f"targets: {sum(t.met for t in targets.targets(found))} met, {len(missed)} missed")
    for line in targets.misses_by_op(found):
        wide.print(f"  missed: {line}", highlight=False)


def words(text: str | None) -> list[str]:
    return [w.strip() for w in (text or "").split(",") if w.strip()]


def numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Positive integers by commas; ValueError says what is accepted."""
    parts = words(text)
    if not all(p.isdigit() and int(p) > 0 for p in parts):
        raise ValueError(f"{option} {text}: accepted: integers >= 1, separated by commas")
    return tuple(int(p) for p in parts)


def choose_ops(ops: str | None, family: str | None, quick: bool = False) -> list[Any]:
    """The ops named, or those of the families named, or all that bench has cases for, or in a quick run the row-wise
    ones; ValueError for unknown ones."""
    from aiter_ops.bench.cases import FAMILIES
    from aiter_ops.bench.targets import ROW_WISE
    from aiter_ops.core.op import get_op, list_ops

    families = words(family)
    for name in families:
        if name not in FAMILIES:
            raise ValueError(f"--family {name}: accepted: {', '.join(FAMILIES)}")
    named = [get_op(name) for name in words(ops)]
    if other := [op.name for op in named if op.family not in FAMILIES]:
        raise ValueError(f"--ops {', '.join(other)}: not timed; families with cases: {', '.join(FAMILIES)}")
    if named:
        return [op for op in named if not families or op.family in families]
    every = [op for op in list_ops() if op.family in (families or (ROW_WISE if quick else FAMILIES))]
    return sorted(every, key=lambda op: FAMILIES.index(op.family))


def choose_contenders(only: str | None) -> tuple[str, ...]:
    """Names, libraries and kinds; ValueError for those that no contender has."""
    from aiter_ops.bench.contenders import unknown_contenders
    from aiter_ops.core.provider import provider_names

    names = tuple(words(only))
    if unknown := unknown_contenders(names, provider_names()):
        raise ValueError(f"--contenders: unknown: {', '.join(unknown)}")
    return names


def tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(command)
