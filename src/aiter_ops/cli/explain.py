"""`aiter-ops explain`: which implementation would serve an op, and why every other one was passed over."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Json, Strict, Use, UserError, console, find_op, other_platform, print_json, shown, using

Arch = Annotated[str | None, typer.Option("--as", metavar="ARCH", help="Answer for this machine: gfx950, sm_90, cpu.")]
Aiter = Annotated[str | None, typer.Option(help="With --as: the AITER release there, e.g. 0.1.16.")]
SampleName = Annotated[str | None, typer.Option("--sample", help="The op's sample to ask about; default: the first.")]


def command(
    op: Annotated[str, typer.Argument(help="An op, e.g. rms_norm.")],
    arch: Arch = None,
    aiter: Aiter = None,
    sample: SampleName = None,
    use: Use = "",
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Which implementation would serve OP, and why each other one was passed over.

    The arguments asked about are one of the op's samples. Exit code 1: a requested provider would not serve.

    Example: aiter-ops explain rms_norm --as gfx950 --aiter 0.1.16
    """
    from aiter_ops import Refused
    from aiter_ops import explain as decide_for
    from aiter_ops.core import runtime
    from aiter_ops.core.platforms import platform

    target = find_op(op)
    if aiter and not arch:
        raise UserError(f"--aiter {aiter}: needs --as ARCH; this machine's AITER is read from what is installed")
    machine = other_platform(arch, aiter) if arch else platform()
    by_name = {s.name: s for s in target.samples(size="small")}
    if sample is not None and sample not in by_name:
        raise UserError(f"--sample {sample!r}; accepted: {', '.join(map(repr, by_name))}")
    chosen = by_name[sample] if sample else next(iter(by_name.values()))
    with using(use, strict):
        rules = runtime.policy()
        wanted, _ = rules.preference(target.name, target.family)
        try:
            decision = decide_for(target, *chosen.args, on=machine, **chosen.kwargs)
        except Refused as error:
            answer = {"op": target.name, "provider": None, "refused": str(error)}
            if not json:
                raise
            print_json({**answer, "sample": chosen.name, "platform": machine.as_dict()})
            raise typer.Exit(1) from None
    if json:
        print_json({**decision.as_dict(), "arguments": chosen.name, "platform": machine.as_dict()})
    else:
        shown(" ".join(["explain", op, *(["--as", arch] if arch else []), *(["--aiter", aiter] if aiter else [])]))
        out = console()
        where = f"as {arch}" if arch else f"on {machine.name}"
        with_aiter = f", AITER {machine.aiter}" if machine.aiter else ""
        out.print(f"[bold]{target.name}[/bold] -> [bold green]{decision.provider}[/bold green]", end="   ")
        out.print(f"[dim]{where}{with_aiter}; arguments of sample '{chosen.name}'[/dim]")
        for provider, taken, reason in decision.reasons:
            mark, style = ("+", "green") if taken else ("-", "dim")
            out.print(f"  [{style}]{mark} {provider:<8}[/{style}] ", end="")
            out.print(reason, markup=False, soft_wrap=True)
    if wanted and decision.provider not in wanted:
        raise typer.Exit(1)
