"""`aiter-ops inspect`: what an op's compiled kernels take of an AMD GPU, do and move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Json, UserError, console, find_op, other_platform, print_json, shown

if TYPE_CHECKING:
    from aiter_ops.check.inspect import Inspection, KernelFacts
    from aiter_ops.core.op import Op
    from aiter_ops.core.platforms import Platform
    from aiter_ops.core.samples import Sample

Arch = Annotated[str, typer.Option("--as", metavar="ARCH", help="The AMD architecture to compile for: gfx942.")]
SampleName = Annotated[
    str | None, typer.Option("--sample", help="The op's sample to run; default: the first with rows that is served.")
]
Static = Annotated[bool, typer.Option("--static", help="Only compile and read; execute nothing.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed the sample is drawn from.")]


def command(
    op: Annotated[str, typer.Argument(help="An op, e.g. rms_norm.")],
    arch: Arch = "gfx942",
    sample: SampleName = None,
    static: Static = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """What the Triton kernels of OP take of an AMD GPU, do and move; no GPU needed.

    They are compiled for the architecture and, where it is emulated, executed on this CPU for one sample: registers, LDS
    and occupancy, instructions by class, bytes moved beside the least that the op must move. Exit code 1: the sample is
    refused there, or the kernels are wrong.

    Example: aiter-ops inspect rms_norm --as gfx942
    """
    target = find_op(op)
    try:
        from aiter_ops.check.inspect import ARCHS, inspect
    except ImportError as error:
        raise UserError(f"inspect needs NumPy and Triton (pip install numpy triton): {error}", code=1) from None
    if arch not in ARCHS:
        raise UserError(f"--as {arch!r}; accepted: {', '.join(ARCHS)}")
    if "triton" not in target.implementations:
        raise UserError(f"{target.name} has no Triton implementation to compile", code=1)
    machine = other_platform(arch)
    chosen = _sample(target, sample, machine, seed)
    # a model's sizes are minutes or hours of emulation
    result = inspect(target, chosen, machine, execute=not static and chosen.size == "small")
    if result.static and not static and chosen.size != "small":
        result.static = "a sample of a model's size is only compiled"
    if json:
        print_json(result.as_dict())
    else:
        shown(" ".join(["inspect", op, "--as", arch, *(["--sample", repr(sample)] if sample else [])]))
        _print(result)
    if result.refused or result.wrong:
        raise typer.Exit(1)


def _sample(op: Op, name: str | None, machine: Platform, seed: int) -> Sample:
    from aiter_ops.check.emulate import refusal

    if name is None:
        small = list(op.samples(size="small", seed=seed))
        full = [s for s in small if not refusal(op, s, machine) and _has_rows(s)]
        return (full or small)[0]
    for found in op.samples(seed=seed):
        if found.name == name:
            return found
    names = ", ".join(repr(s.name) for s in op.samples(size="small", seed=seed))
    raise UserError(f"--sample {name!r}; accepted: {names}, and those of a model's size")


def _has_rows(sample: Sample) -> bool:
    import torch

    return all(a.numel() for a in sample.args if isinstance(a, torch.Tensor))


def _print(result: Inspection) -> None:
    out = console()
    out.print(f"[bold]{result.op}[/bold] as {result.arch}; sample '{result.sample}'")
    if result.refused:
        out.print(f"refused: {result.refused}", style="red", markup=False)
        return
    if not result.kernels:
        out.print("nothing is launched for this sample")
        return
    out.print()
    out.print(_resources_table(result.kernels))
    out.print()
    out.print(_mix_table(result.kernels))
    out.print()
    for k in result.kernels:
        _print_moves(k)
    if result.wrong:
        out.print(f"wrong: {result.wrong}", style="bold red", markup=False)
    if result.static:
        out.print(f"nothing was executed: {result.static}", style="dim", markup=False)
    elif result.over_least is not None:
        out.print(f"moved {_bytes(result.moved or 0)}, the op's least {_bytes(result.cost.bytes)}: ", end="")
        out.print(f"{result.over_least:.2f} times the least", style="bold")
        _print_products(result)


def _print_products(result: Inspection) -> None:
    made = sum(k.executed.products for k in result.kernels if k.executed)
    if made and result.cost.flops:
        ratio = made / result.cost.flops
        console().print(f"matrix operations {made:,}, the op's {result.cost.flops:,}: {ratio:.2f} times (padded tiles)")


def _resources_table(kernels: list[KernelFacts]) -> Any:
    from rich.table import Table

    view = Table(box=None, pad_edge=False, header_style="bold")
    view.add_column("kernel", overflow="fold")
    for column in ("programs", "waves", "VGPR", "AGPR", "SGPR", "LDS", "scratch", "spills", "waves/SIMD", "limited by"):
        view.add_column(column, no_wrap=True, justify="left" if column == "limited by" else "right")
    for k in kernels:
        r = k.resources
        spills = r.vgpr_spills + r.sgpr_spills
        fits = "?" if k.waves_per_simd is None else f"{k.waves_per_simd:g} of {k.most_waves}"
        bad = "red" if spills or r.scratch else ""
        numbers = [r.waves_per_group, r.vgprs, r.agprs, r.sgprs, _bytes(r.lds), _bytes(r.scratch), spills]
        name = k.kernel + (f" ×{k.launches}" if k.launches > 1 else "")
        view.add_row(name, str(k.grid), *map(str, numbers), fits, k.limiter or "not known", style=bad)
    return view


def _mix_table(kernels: list[KernelFacts]) -> Any:
    """Classes down, kernels across: in the code, and the share of what was executed."""
    from rich.table import Table

    from aiter_ops.amdgcn.mix import CLASSES

    view = Table(box=None, pad_edge=False, header_style="bold")
    view.add_column("instructions", no_wrap=True)
    for k in kernels:
        view.add_column(k.kernel, justify="right", overflow="fold")
    rows = [c for c in CLASSES if any(k.instructions.get(c) for k in kernels)]
    for name in rows:
        view.add_row(name, *(_share(k, name) for k in kernels), style="bold" if name == "matrix" else "")
    view.add_row("all", *(_total(k) for k in kernels), style="dim")
    return view


def _share(k: KernelFacts, name: str) -> str:
    in_code = k.instructions.get(name, 0)
    if k.executed is None:
        return f"{in_code}"
    total = sum(k.executed.instructions.values()) or 1
    return f"{in_code}  {100 * k.executed.instructions.get(name, 0) / total:5.1f} %"


def _total(k: KernelFacts) -> str:
    in_code = sum(k.instructions.values())
    return f"{in_code}" if k.executed is None else f"{in_code}  {sum(k.executed.instructions.values()):,}"


def _print_moves(k: KernelFacts) -> None:
    out = console()
    out.print(k.kernel, style="bold", markup=False)
    shown_widths = (k.executed.widths if k.executed else k.widths) or k.widths
    for kind, sizes in sorted(shown_widths.items()):
        what = ", ".join(f"{n:,} of {size} B" for size, n in sorted(sizes.items(), reverse=True))
        out.print(f"  {kind:<13} {what}", markup=False)
    if k.executed is None:
        return
    m = k.executed.moved
    out.print(f"  {'read':<13} {_bytes(m.read)} distinct, {_bytes(m.loaded)} asked for by lanes", markup=False)
    out.print(f"  {'written':<13} {_bytes(m.written)} distinct, {_bytes(m.stored)} asked for by lanes", markup=False)
    if m.lines:
        useful = (m.loaded + m.stored) / m.lines
        out.print(f"  {'cache lines':<13} {_bytes(m.lines)} touched, {useful:.2f} of them asked for", markup=False)
    if k.executed.lds_least:
        extra = k.executed.lds_cycles - k.executed.lds_least
        text = f"{_bytes(k.executed.lds_bytes)}, {k.executed.lds_cycles:,} cycles, {extra:,} of them bank conflicts"
        out.print(f"  {'LDS':<13} {text}", style="yellow" if extra > k.executed.lds_least else "", markup=False)


def _bytes(n: int) -> str:
    for size, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= 10 * size:
            return f"{n / size:.1f} {unit}"
    return f"{n:,} B"
