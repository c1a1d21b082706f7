"""Triton implementations as AMD machine code, executed on the CPU, against the reference. docs/emulator.md says what that
proves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aiter_ops.amdgcn import Counts, EmulationError, Machine, Memory, Profile, Program, Unsupported, parse
from aiter_ops.amdgcn.kernel import extent, place
from aiter_ops.core.compare import Verdict, own_copy
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform, fp8_as_on, platform_for
from aiter_ops.core.samples import Sample
from aiter_ops.providers.triton.launch import Job, running_for

from .aot import compiled_for
from .support import promised
from .trial import Row, _poisoned

ARCHS = ("gfx942", "gfx950", "gfx90a", "gfx1100", "gfx1201")
"""Architectures whose machine code is executed. gfx1200 is gfx1201."""


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its program, bytes of LDS beside those of the descriptor, the places among a job's tensors and
    numbers of the arguments that it still takes, and its assembly.
    """

    program: Program
    lds: int
    places: tuple[int, ...]
    text: str = field(repr=False, default="")


@dataclass
class Emulation:
    """refused: why the implementation does not serve the sample; None: it ran, and `verdict` compares."""

    refused: str | None = None
    verdict: Verdict | None = None
    counts: Counts = field(default_factory=Counts)


@functools.lru_cache(maxsize=256)
def kernel_for(job: Job, target: Platform) -> Kernel:
    """Compile one job. Raises what the compiler raises, and Unsupported."""
    compiled = compiled_for(job, target)
    types = list(compiled.src.signature.values())[: len(job.tensors) + len(job.numbers)]
    places = tuple(i for i, kind in enumerate(types) if kind != "constexpr")
    text = compiled.asm["amdgcn"]
    return Kernel(_parsed(text), compiled.metadata.shared, places, text)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Program:
    """Jobs that differ in numbers alone often have one assembly."""
    return parse(text)


def refusal(op: Op, sample: Sample, target: Platform) -> str | None:
    """Why the Triton implementation of `op` does not serve a sample on `target`, or None."""
    implementation = op.implementations["triton"]
    if reason := implementation.unmet(target):
        return reason
    args, kwargs = op.bind(sample.args, sample.kwargs, on=target)
    predicate = implementation.predicate(target) if implementation.predicate else None
    return predicate(*args, **kwargs) if predicate else None


def emulate(
    op: Op,
    sample: Sample,
    target: Platform,
    change: Callable[[Program], Program] | None = None,
    seen: Callable[[Job, Kernel, Machine], None] | None = None,
    prepare: Callable[[Machine], None] | None = None,
) -> Emulation:
    """Run what the Triton implementation of `op` starts for `sample` on `target`, in order, and compare.

    change: a function of each kernel's Program that gives another one, for controls. seen: what is told of every launch;
    its machine then has a Profile. prepare: what is given every machine before it runs. Raises EmulationError for what a program must not do, and Unsupported for what is not
    modelled.
    """
    implementation = op.implementations["triton"]
    if reason := refusal(op, sample, target):
        return Emulation(reason)
    args, kwargs = op.bind(sample.args, sample.kwargs, on=target)
    out = Emulation()

    def run(job: Job, grid: int, tensors: tuple[Tensor, ...]) -> None:
        kernel = kernel_for(job, target)
        program = change(kernel.program) if change else kernel.program
        machine = _launch(kernel, program, job, grid, tensors, Profile(target.arch) if seen else None, prepare)
        done = machine.counts
        out.counts.waves += done.waves
        out.counts.instructions += done.instructions
        out.counts.lane_instructions += done.lane_instructions
        if seen:
            seen(job, kernel, machine)

    with fp8_as_on(target):
        want = op.run(op.reference, args, kwargs)
    with _poisoned(), running_for(target, run):
        got = op.run(implementation.fn, args, kwargs)
    out.verdict = op.compare(got, want)
    return out


def verify_emulated(ops: Iterable[Op], archs: Iterable[str], seed: int = 0) -> Iterator[Row]:
    """A `Row` per architecture and op, as they are done: its Triton implementation over its small samples."""
    ops = list(ops)
    for arch in archs:
        for op in ops:
            yield _row(op, platform_for(arch), seed)


def inputs(op: Op, target: Platform, seed: int = 0) -> Iterator[Sample]:
    """What an op is emulated on: its small samples, and for ops that work row by row (they are inlined in compiled code) each
    that is served with `variants`: steps of a division and guards of zero and infinity show there that ordinary numbers hide.
    """
    for sample in op.samples(size="small", seed=seed):
        yield sample
        if op.inline and not refusal(op, sample, target):
            yield from variants(sample)


def variants(sample: Sample) -> Iterator[Sample]:
    """The sample with rows of other sizes, and with an infinity and a NaN, where it has a matrix for that."""
    yield from (s for s in (rescaled(sample), special(sample)) if s is not None)


def rescaled(sample: Sample, low: int = -12, high: int = 12) -> Sample | None:
    """A sample whose first matrix of floats has rows from 2^low to 2^high times as large, of more than two the last zeros, in
    the same memory layout; None where there is no such matrix.
    """
    for at, value in enumerate(sample.args):
        if not isinstance(value, Tensor) or value.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            continue
        if value.dim() < 2 or not value.numel() or 0 in value.stride():
            continue
        rows = value.shape[0]
        power = torch.linspace(low, high, rows).round().exp2().reshape(-1, *[1] * (value.dim() - 1))
        made = own_copy(value).copy_((value.float() * power).clamp(-30000, 30000))
        if rows > 2:
            made[-1] = 0
        args = (*sample.args[:at], made, *sample.args[at + 1 :])
        return Sample(f"{sample.name}, rows by 2^{low} to 2^{high}", args, sample.kwargs, sample.size)
    return None


def special(sample: Sample) -> Sample | None:
    """A sample whose first matrix of floats has an infinity in its first row and a NaN in its second; None without such."""
    made = rescaled(sample, 0, 0)
    if made is None:
        return None
    x = next(a for a, b in zip(made.args, sample.args, strict=True) if a is not b)
    rows = x.flatten(0, -2) if x.is_contiguous() else x
    if rows.shape[0] < 4:
        return None
    rows[0, ..., -1] = float("inf")
    rows[1, ..., 0] = float("nan")
    return Sample(f"{sample.name}, an infinity and a NaN", made.args, made.kwargs, made.size)


def _row(op: Op, target: Platform, seed: int) -> Row:
    row = Row(op.name, op.family, "triton", f"{target.arch}, emulated", "not here")
    for sample in inputs(op, target, seed):
        try:
            result = emulate(op, sample, target)
        except EmulationError as error:  # of the program, or of what is not modelled
            if isinstance(error, Unsupported):
                row.verdict, row.detail = "not here", f"sample '{sample.name}': {error}".splitlines()[0]
                return row
            return row.fail(sample, str(error).splitlines()[0])
        except Exception as error:  # of the compiler
            return row.fail(sample, f"{type(error).__name__}: {error}".splitlines()[0])
        if result.verdict is None:
            row.refused += 1
            row.refusals.append(f"{sample.name}: {result.refused}")
            if promised(op.name, "triton", target, sample.name):
                return row.fail(sample, f"refused, though the support matrix promises it: {result.refused}")
            continue
        row.run += 1
        row.verdict = "ok"
        row.note(result.verdict)
        if not result.verdict.ok:
            return row.fail(sample, result.verdict.detail)
    if not row.run:
        row.detail = row.refusals[0].partition(": ")[2] if row.refusals else "has no small sample"
    return row


def _launch(
    kernel: Kernel,
    program: Program,
    job: Job,
    grid: int,
    tensors: tuple[Tensor, ...],
    profile: Profile | None,
    prepare: Callable[[Machine], None] | None,
) -> Machine:
    """The tensors are changed in place; the machine as it is afterwards."""
    if job.described:
        raise EmulationError("tensor descriptors")
    memory = Memory()
    pointers = place(memory, map(extent, tensors))
    machine = Machine(program, memory, kernel.lds, profile=profile)
    if prepare:
        prepare(machine)
    values: list[Any] = [*pointers, *job.numbers]
    machine.run(grid, [values[i] for i in kernel.places])
    return machine
