"""``aiter-ops bench``: how fast the implementations are here, beside others and beside what the memory can do."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

FINE, FAILED, USAGE, PROBE_FAILED = 0, 1, 2, 3


def command(
    ops: Annotated[str | None, typer.Option(help="Ops, separated by commas. Default: all.")] = None,
    family: Annotated[str | None, typer.Option(help="norm, activation or quant; several by commas.")] = None,
    rows: Annotated[str | None, typer.Option(help="Row counts. Default: 1,64,8192,16384; without a GPU 1,64.")] = None,
    widths: Annotated[str | None, typer.Option(help="Widths of the result. Default: 4096,7168,8192.")] = None,
    only: Annotated[
        str | None,
        typer.Option("--contenders", help="Contenders, libraries or kinds (ours, torch, peer). Default: all."),
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(help="Folder with vllm/*.so, sglang_kernel/*.so, python/<package>; else installed ones."),
    ] = None,
    compiled: Annotated[
        str, typer.Option("--compile", help="Shapes torch.compile takes part in: none, large or all.")
    ] = "large",
    seconds: Annotated[float, typer.Option(help="Time for the replays of one op at one shape.", min=0.01)] = 0.3,
    workers: Annotated[
        int, typer.Option(help="Processes that compile ahead of timing; 0: one less than cores.", min=0)
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two shapes an op, no torch.compile: under a minute.")] = False,
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
            found = read(source)
        else:
            found = measure_all(
                ops, family, rows, widths, only, peers, compiled, seconds, workers, quick, rules, json_file
            )
        code = finish(found, json_file, plot)
    except (SettingsError, ValueError, OSError) as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(USAGE) from None
    raise typer.Exit(code)


def read(source: Path) -> dict[str, Any]:
    """A results file; ValueError for anything else."""
    text = source.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--from {source}: not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("version") != 1 or "results" not in found:
        raise ValueError(f"--from {source}: not a results file of bench")
    return found


def measure_all(
    ops: str | None,
    family: str | None,
    rows: str | None,
    widths: str | None,
    only: str | None,
    folder: Path | None,
    compiled: str,
    seconds: float,
    workers: int,
    quick: bool,
    rules: str,
    json_file: Path | None,
) -> dict[str, Any]:
    """Choose, compile, measure; returns what goes into the results file. ValueError for what is not known."""
    import torch

    import aiter_ops
    from aiter_ops.bench import inputs, limits, machine, runner
    from aiter_ops.bench import peers as libraries
    from aiter_ops.bench.contenders import Selection, configure_compiler, unknown_contenders
    from aiter_ops.bench.warm import YARDSTICKS, setup_of, warm
    from aiter_ops.core.provider import provider_names

    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    chosen = choose_ops(ops, family)
    row_list = numbers("--rows", rows) or (
        (1, 8192) if quick and gpu else inputs.ROWS if gpu else (1,) if quick else (1, 64)
    )
    width_list = numbers("--widths", widths) or (inputs.WIDTHS[:1] if quick else inputs.WIDTHS)
    if compiled not in ("none", "large", "all"):
        raise ValueError(f"--compile {compiled}: accepted: none, large, all")
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--peers {folder}: no such folder")
    names = tuple(words(only))
    if unknown := unknown_contenders(names, provider_names()):
        raise ValueError(f"--contenders: unknown: {', '.join(unknown)}")
    compile_for: Any = "none" if quick else compiled
    selection = Selection(names, compile_for)
    run = runner.Run(device, min(seconds, 0.05) if quick else seconds, selection)
    found: dict[str, Any] = {
        "version": 1,
        "date": datetime.date.today().isoformat(),
        "timer": "graph" if gpu else "wall",
        "machine": machine.facts(folder),
        "clocks": {"before": machine.clocks()} if gpu else {},
        "options": {"rows": row_list, "widths": width_list, "compile": compile_for, "use": rules, "quick": quick},
        "peers": {},
        "streams": [],
        "results": [],
        "seconds": 0.0,
        "stopped": True,
    }
    to_save = None if json_file is None or str(json_file) == "-" else json_file
    save = runner.saver(to_save)
    shapes = list(runner.shapes_of(chosen, row_list, width_list))
    with aiter_ops.use(rules):
        if gpu:
            failed = libraries.probe(folder)
            jobs = [*YARDSTICKS, *[(op.name, r, w) for op, r, w in shapes]]
            count = workers or max(1, (os.cpu_count() or 2) - 1)
            setup = setup_of(folder, failed, selection, rules)
            limit = max(60.0, 0.9 * len(jobs))
            with ThreadPoolExecutor(1) as beside:
                warming = beside.submit(warm, jobs, setup, min(count, 16), limit, tell)
                found["peers"] = libraries.load(folder, failed)
                run.problems = warming.result()
            if "child" in run.problems:
                tell(f"a compiling child {run.problems['child']}")
            configure_compiler()
            with torch.inference_mode():
                streams = limits.Streams(device, run.cache)
                found["streams"] = limits.measure_streams(streams, run.flush, 0.1)
                del streams
            torch.cuda.empty_cache()
            found["compile_seconds"] = time.monotonic() - started
            tell(f"compiled and limits measured, {found['compile_seconds']:.0f} s: " + rates(found["streams"]))
        else:
            tell("no GPU: only the references are timed, by wall clock on the CPU")
        runner.run_all(run, shapes, found, save, tell)
    found["problems"] = run.problems
    found["clocks"] |= {"after": machine.clocks()} if gpu else {}
    found["seconds"], found["stopped"] = time.monotonic() - started, False
    save(found)
    return found


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
    wrong = [
        f"{r['op']} {r['rows']}×{r['width']}: {n}: {why}" for r in found["results"] for n, why in r["wrong"].items()
    ]
    for line in wrong:
        tell(f"failed: {line}")
    return FAILED if wrong or analysis.invalid(found) else FINE


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from aiter_ops.bench import analysis, report

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
    missed = analysis.misses(found)
    wide.print(f"targets: {sum(t.met for t in analysis.targets(found))} met, {len(missed)} missed")
    for line in analysis.misses_by_op(found):
        wide.print(f"  missed: {line}", highlight=False)


def rates(streams: list[dict[str, Any]]) -> str:
    return ", ".join(f"{s['mix']} {s['gbps']:.0f} GB/s" for s in streams)


def words(text: str | None) -> list[str]:
    return [w.strip() for w in (text or "").split(",") if w.strip()]


def numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Positive integers by commas; ValueError says what is accepted."""
    parts = words(text)
    if not all(p.isdigit() and int(p) > 0 for p in parts):
        raise ValueError(f"{option} {text}: accepted: integers >= 1, separated by commas")
    return tuple(int(p) for p in parts)


def choose_ops(ops: str | None, family: str | None) -> list[Any]:
    """The ops named, or those of the families named, or all that bench has inputs for; ValueError for unknown ones."""
    from aiter_ops.bench.inputs import FAMILIES
    from aiter_ops.core.op import get_op, list_ops

    families = words(family)
    for name in families:
        if name not in FAMILIES:
            raise ValueError(f"--family {name}: accepted: {', '.join(FAMILIES)}")
    named = [get_op(name) for name in words(ops)]
    if named:
        return [op for op in named if not families or op.family in families]
    every = [op for op in list_ops() if op.family in (families or FAMILIES)]
    return sorted(every, key=lambda op: FAMILIES.index(op.family))


def tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(command)
