"""`aiter-ops verify`: every implementation against the reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    Json,
    Use,
    UserError,
    console,
    find_ops,
    find_provider,
    print_json,
    progress_console,
    shown,
    using,
)

if TYPE_CHECKING:
    from aiter_ops.check.trial import Row


class Size(str, Enum):
    small, model, all = "small", "model", "all"


Names = Annotated[list[str] | None, typer.Argument(help="Ops or families; without any: all.", metavar="[OP]...")]
ProviderName = Annotated[str | None, typer.Option(help="Only this provider; exit code 1 where it serves nothing.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: the GPU where there is one.")]
SizeName = Annotated[Size | None, typer.Option(help="Samples; default: small on a CPU, all on a GPU.")]
Emulate = Annotated[
    str,
    typer.Option(
        help="Execute what Triton compiles for these architectures, by commas, as machine code on the CPU: gfx942, gfx950, gfx90a, gfx1100, gfx1201.",
        metavar="ARCHS",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed the samples are drawn from.")]


def command(
    names: Names = None,
    provider: ProviderName = None,
    device: Device = None,
    size: SizeName = None,
    seed: Seed = 0,
    emulate: Emulate = "",
    use: Use = "",
    json: Json = False,
) -> None:
    """Every implementation against the reference, over the samples of each op.

    A row says how many samples ran and how many were refused, and the largest error beside its tolerance. torch is
    the reference: only its own invariants are checked, so it is no pass. Exit code 1: something failed or crashed,
    or a provider that was asked for serves nothing here.

    Example: aiter-ops verify norm --provider triton
    """
    from aiter_ops.check.verify import verify
    from aiter_ops.core import runtime

    chosen = find_ops(names)
    wanted = find_provider(provider)
    if emulate:
        _emulated(
            chosen, names or [], emulate, seed, json, {"--provider": provider, "--device": device, "--size": size}
        )
        return
    where = _device(device)
    with using(use):
        rules = runtime.policy()
        wishes = {o.name: rules.preference(o.name, o.family)[0] for o in chosen}
        count = len(chosen) * (1 if wanted else len(_providers()))
        steps = verify(chosen, [wanted] if wanted else None, where, size.value if size else None, seed)
        rows = list(_watched(steps, count))
    failed = [r for r in rows if r.bad]
    here = {(r.op, r.provider) for r in rows if r.verdict != "not here"}
    missed = [] if wanted else [n for n, wish in wishes.items() if wish and not any((n, p) in here for p in wish)]
    idle = wanted is not None and all(r.verdict == "not here" for r in rows)
    if json:
        from aiter_ops.core.platforms import platform

        data: dict[str, Any] = {"platform": platform().as_dict(), "seed": seed, "rows": [r.as_dict() for r in rows]}
        print_json({**data, "failed": len(failed), "missed": missed})
    else:
        _table(rows, names or [], provider)
        for name in missed:
            console().print(f"{name}: {'/'.join(wishes[name])} was asked for by a rule and is not here", style="red")
    if failed or missed or idle:
        raise typer.Exit(1)


def _emulated(ops: list[Any], names: list[str], archs: str, seed: int, json: bool, others: dict[str, object]) -> None:
    """With --emulate: Triton's implementations over the small samples, no device needed."""
    try:
        from aiter_ops.check.emulate import ARCHS, verify_emulated
    except ImportError as error:
        raise UserError(f"--emulate needs NumPy and Triton (pip install numpy triton): {error}", code=1) from None
    wanted = [a.strip() for a in archs.split(",")]
    for arch in wanted:
        if arch not in ARCHS:
            raise UserError(f"--emulate {arch!r}; accepted: {', '.join(ARCHS)}")
    for option, value in others.items():
        if value is not None and (option, value) != ("--provider", "triton"):
            raise UserError(f"{option} has no meaning with --emulate, which runs Triton's small samples on the CPU")
    rows = list(_watched(verify_emulated(ops, wanted, seed), len(ops) * len(wanted)))
    failed = [r for r in rows if r.bad]
    if json:
        print_json({"seed": seed, "rows": [r.as_dict() for r in rows], "failed": len(failed)})
    else:
        _table(rows, [*names, "--emulate", archs], None, f"{', '.join(wanted)} machine code, executed on the CPU")
    if failed or all(r.verdict == "not here" for r in rows):
        raise typer.Exit(1)


def _providers() -> tuple[str, ...]:
    from aiter_ops.core.provider import provider_names

    return provider_names()


def _device(device: str | None) -> str | None:
    import torch

    if device is None:
        return None
    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = torch.device("meta")
    if kind.type not in ("cpu", "cuda"):
        raise UserError(f"--device {device!r}; accepted: cpu, cuda, cuda:N")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device!r}; this torch sees {torch.cuda.device_count()} GPUs", code=1)
    return device


def _watched(steps: Iterable[Row], count: int) -> Iterator[Row]:
    """The same rows, with a progress bar on stderr that names what was done last."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("verify"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=progress_console(), transient=True) as bar:
        task = bar.add_task("", total=count)
        for row in steps:
            bar.update(task, advance=1, description=f"{row.op} on {row.provider}: {row.verdict}")
            yield row


_STYLE = {"ok": "green", "reference": "cyan", "failed": "bold red", "crashed": "bold red", "not here": "dim"}


def _table(rows: list[Row], names: list[str], provider: str | None, where: str | None = None) -> None:
    from rich.table import Table

    from aiter_ops.core.platforms import platform

    shown(" ".join(["verify", *names, *(["--provider", provider] if provider else [])]))
    out = console()
    here = [r for r in rows if r.verdict != "not here"]
    several = len({r.device for r in rows}) > 1

    def who(r: Row) -> str:
        return f"{r.provider} {r.device.partition(',')[0]}" if several else r.provider

    if here:
        view = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        for column in ("op", "provider", "run", "refused", "max error", "tolerance", "verdict"):
            view.add_column(column, no_wrap=True, justify="right" if column in ("run", "refused") else "left")
        for r in here:
            numbers = ("", "") if r.provider == "torch" else (f"{r.error:.3g}", f"{r.tolerance:.3g}")
            view.add_row(r.op, who(r), str(r.run), str(r.refused), *numbers, f"[{_STYLE[r.verdict]}]{r.verdict}[/]")
        out.print(view)
        out.print()
    for r in rows:
        if r.bad:
            out.print(f"{r.op} on {who(r)}: {r.detail}", style="red", markup=False)
    away: dict[tuple[str, str], int] = {}
    for r in rows:
        if r.verdict == "not here":
            away[who(r), r.detail] = away.get((who(r), r.detail), 0) + 1
    for (name, why), n in away.items():
        out.print(f"{name}: {n} ops not checked here: {why}", style="dim", markup=False)
    counts = {v: sum(r.verdict == v for r in rows) for v in _STYLE}
    text = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    out.print(f"{where or platform().name}: {text}", style="bold", markup=False)
