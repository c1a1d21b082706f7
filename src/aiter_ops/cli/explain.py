"""`aiter-ops explain`: which implementation would serve an op, and why every other one was passed over."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    Aiter,
    As,
    Json,
    Rocm,
    Sources,
    Strict,
    Use,
    UserError,
    console,
    find_op,
    other_platform,
    print_json,
    shown,
    using,
)

if TYPE_CHECKING:
    from aiter_ops.core.op import Op
    from aiter_ops.core.samples import Sample

Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=4x4096[:DTYPE]", help="A tensor of the sample in another shape; repeatable."),
]
SampleName = Annotated[str | None, typer.Option("--sample", help="The op's sample to ask about; default: the first.")]


def command(
    op: Annotated[str, typer.Argument(help="An op, e.g. rms_norm.")],
    arch: As = None,
    aiter: Aiter = None,
    rocm: Rocm = None,
    sources: Sources = None,
    sample: SampleName = None,
    shape: Shapes = None,
    use: Use = "",
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Which implementation would serve OP, and why each other one was passed over.

    The arguments asked about are one of the op's samples, with --shape in place of its tensors. Exit code 1: a requested
    provider would not serve.

    Example: aiter-ops explain rms_norm --as gfx950 --rocm 7.2 --aiter 0.1.16 --shape x=4x4096
    """
    from aiter_ops import Refused
    from aiter_ops import explain as decide_for
    from aiter_ops.core import runtime
    from aiter_ops.core.platforms import platform

    target = find_op(op)
    elsewhere = arch or aiter or rocm or sources
    machine = other_platform(arch, aiter, rocm, sources) if elsewhere else platform()
    by_name = {s.name: s for s in target.samples(size="small")}
    if sample is not None and sample not in by_name:
        raise UserError(f"--sample {sample!r}; accepted: {', '.join(map(repr, by_name))}")
    chosen = by_name[sample] if sample else next(iter(by_name.values()))
    if shape:
        chosen = _reshaped(target, chosen, shape)
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
        given = {"--as": arch, "--rocm": rocm, "--aiter": aiter}
        shown(" ".join(["explain", op, *(f"{n} {v}" for n, v in given.items() if v)]))
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


def _reshaped(op: Op, sample: Sample, shapes: list[str]) -> Sample:
    """A sample with tensors of other shapes, not drawn, after the op's own checks; UserError where they fail."""
    import torch

    from aiter_ops.core.samples import Sample

    bound = inspect.signature(op.written).bind(*sample.args, **sample.kwargs)
    names = [p.name for p in op.signature.params if p.is_tensor]
    for text in shapes:
        found = re.fullmatch(r"(\w+)=(\d+(?:x\d+)*)(?::(\w+))?", text)
        if not found or found[1] not in names:
            raise UserError(f"--shape {text!r}; accepted: NAME=4x4096[:DTYPE], NAME one of {', '.join(names)}")
        old = bound.arguments.get(found[1])
        dtype = getattr(torch, found[3], None) if found[3] else getattr(old, "dtype", torch.bfloat16)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"--shape {text!r}: accepted: a dtype of torch, e.g. bfloat16 or float8_e4m3fn")
        bound.arguments[found[1]] = torch.empty([int(n) for n in found[2].split("x")], dtype=dtype)
    values, named = op.bind(bound.args, bound.kwargs)
    try:
        op.checks(*values, **named)
    except (TypeError, ValueError) as error:
        raise UserError(f"--shape: {error}") from None
    return Sample(f"{sample.name}, {', '.join(shapes)}", bound.args, bound.kwargs)
