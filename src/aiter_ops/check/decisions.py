"""Who would serve each op on machines that are not here: from data alone, for `ops --as` and the reviewed table."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

from aiter_ops.core import runtime
from aiter_ops.core.decide import Decision, decide
from aiter_ops.core.op import Op, list_ops
from aiter_ops.core.platforms import AS_NEWEST, Platform, platform_for
from aiter_ops.core.policy import Policy
from aiter_ops.core.samples import Sample

from .support_table import Notes

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)

ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
ROCM = "7.2"
COLUMNS: dict[str, dict[str, str]] = {
    "none": {},
    **{release: {"aiter": release} for release in ("0.1.9", "0.1.14", "0.1.16", "0.1.20")},
    "0.1.26=": {"aiter": "0.1.26", "aiter_root": AS_NEWEST},
    "0.1.26?": {"aiter": "0.1.26"},
}
"""AITERs of the reviewed table: ``=`` with the signatures of the newest release known, ``?`` with unknown ones."""


@cache
def _usual(op: Op) -> Sample:
    """The op's first sample that AITER's adapter takes on gfx950 in the newest release known, without data; its first
    one where it takes none.
    """
    implementation, machine = op.implementations.get("aiter"), platform_for("gfx950", aiter="assumed")
    refuses = implementation.predicate(machine) if implementation and implementation.predicate else None
    for sample in op.samples(values=False) if refuses else ():
        args, kwargs = op.bind(sample.args, sample.kwargs, machine)
        if refuses and refuses(*args, **kwargs) is None:
            return sample
    return next(op.samples(size="small", values=False))


def asked(op: Op, machine: Platform) -> Sample:
    """The sample whose decision is told: a usual one for AITER, its FP8 codes in the machine's flavour."""
    sample = _usual(op)

    def flavoured(value: Any) -> Any:
        other = isinstance(value, torch.Tensor) and value.dtype in FP8 and value.dtype != machine.fp8_dtype
        return value.view(machine.fp8_dtype) if other else value

    kwargs = {n: flavoured(v) for n, v in sample.kwargs.items()}
    return Sample(sample.name, tuple(map(flavoured, sample.args)), kwargs)


def decision(op: Op, machine: Platform, rules: Policy | None = None) -> Decision:
    """Who serves an op there, for the sample of `asked`; its tensors count as being on the machine's GPU."""
    sample, policy = asked(op, machine), rules or Policy()
    args, kwargs = op.bind(sample.args, sample.kwargs, machine)
    found = runtime.find(op, machine, policy)
    made = decide(op.name, found, policy, op.family, machine.has_gpu, args, kwargs)
    return made._replace(arguments=sample.name)


def table() -> str:
    """Every op on every machine of ARCHS and COLUMNS as text: who serves, and by number why AITER does not."""
    notes = Notes()
    width = max(map(len, COLUMNS)) + 6
    head = "".join(f"{name:<{width}}" for name in COLUMNS)
    lines = [
        f"Who serves each op, by AITER release (columns), with ROCm {ROCM}: asked with the op's first sample that AITER",
        "takes on gfx950 in the newest release known, or with its first one.",
        "0.1.26=: newer than the table, with the signatures of the newest release in it; 0.1.26?: with unknown ones.",
        "(n): why AITER does not serve, below. Made by tools/golden_decisions.py.",
    ]
    family = ""
    for op in list_ops():
        if op.family != family:
            family = op.family
            lines += ["", f"{family:<28}{'':<26}{head}".rstrip()]
        by_cells: dict[str, list[str]] = {}
        for arch in ARCHS:
            by_cells.setdefault(_cells(op, arch, notes, width), []).append(arch)
        for i, (cells, archs) in enumerate(by_cells.items()):
            lines.append(f"{op.name if i == 0 else '':<28}{_short(archs):<26}{cells}".rstrip())
    return "\n".join([*lines, "", *(f"({n}) {text}" for n, text in enumerate(notes.texts, 1)), ""])


def _short(archs: Iterable[str]) -> str:
    first, *rest = archs
    return " ".join([first, *(a.removeprefix("gfx") for a in rest)])


def _cells(op: Op, arch: str, notes: Notes, width: int) -> str:
    cells = []
    for facts in COLUMNS.values():
        machine = platform_for(arch, hip=ROCM, triton="assumed", torch_version="assumed", **facts)
        made = decision(op, machine)
        why = next((reason for name, taken, reason in made.reasons if name == "aiter" and not taken), None)
        if why:
            why = why.replace(f"this machine is {arch}", "this machine is another").replace(f"on {arch}", "there")
            why = why.removesuffix(f"; {machine.aiter} is installed")
        note = f"({notes.number(why)})" if why else ""
        cells.append(f"{made.provider}{note}")
    return "".join(f"{cell:<{width}}" for cell in cells)
