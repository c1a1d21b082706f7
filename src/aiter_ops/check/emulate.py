"""Triton implementations as AMD machine code, executed on the CPU, against the reference. docs/emulator.md says what that
proves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aiter_ops.amdgcn import Counts, EmulationError, Machine, Memory, Pointer, Program, Unsupported, parse
from aiter_ops.core.compare import Verdict
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform, fp8_as_on, platform_for
from aiter_ops.core.samples import Sample
from aiter_ops.providers.triton.launch import Job, running_for

from .aot import compiled_for
from .trial import Row, _poisoned

POISONS = (0xFFFFFFFF, 0x5A5A5A5A)
"""What registers and LDS hold at first, in two runs that must agree to the bit."""


ARCHS = ("gfx942", "gfx950", "gfx90a")
"""Architectures whose machine code is executed."""


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its program, bytes of LDS beside those of the descriptor, and the places among a job's tensors
    and numbers of the arguments that it still takes.
    """

    program: Program
    lds: int
    places: tuple[int, ...]


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
    return Kernel(parse(compiled.asm["amdgcn"]), compiled.metadata.shared, places)


def emulate(op: Op, sample: Sample, target: Platform, change: Callable[[Program], Program] | None = None) -> Emulation:
    """Run what the Triton implementation of `op` starts for `sample` on `target`, in order, and compare.

    change: a function of each kernel's Program that gives another one, for controls. Raises EmulationError for what a
    program must not do, and Unsupported for what is not modelled.
    """
    implementation = op.implementations["triton"]
    args, kwargs = op.bind(sample.args, sample.kwargs, on=target)
    if reason := implementation.unmet(target):
        return Emulation(reason)
    predicate = implementation.predicate(target) if implementation.predicate else None
    if predicate and (reason := predicate(*args, **kwargs)):
        return Emulation(reason)
    out = Emulation()

    def run(job: Job, grid: int, tensors: tuple[Tensor, ...]) -> None:
        kernel = kernel_for(job, target)
        _launch(kernel, change(kernel.program) if change else kernel.program, job, grid, tensors, out.counts)

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


def _row(op: Op, target: Platform, seed: int) -> Row:
    row = Row(op.name, op.family, "triton", f"{target.arch}, emulated", "not here")
    for sample in op.samples(size="small", seed=seed):
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
            continue
        row.run += 1
        row.verdict = "ok"
        row.note(result.verdict)
        if not result.verdict.ok:
            return row.fail(sample, result.verdict.detail)
    if not row.run:
        row.detail = row.refusals[0].partition(": ")[2] if row.refusals else "has no small sample"
    return row


def _launch(kernel: Kernel, program: Program, job: Job, grid: int, tensors: tuple[Tensor, ...], counts: Counts) -> None:
    """Once for each poison, from the same memory; the results must be the same to the bit."""
    if job.described:
        raise EmulationError("tensor descriptors")
    storages = {t.untyped_storage().data_ptr(): _bytes(t) for t in tensors if t.numel()}
    before = {p: data.copy() for p, data in storages.items()}
    results = []
    for poison in POISONS:
        for p, data in storages.items():
            data[...] = before[p]
        memory = Memory()
        bases = {p: memory.add(data, p % 256, _extents(p, len(data), tensors)) for p, data in storages.items()}
        machine = Machine(program, memory, kernel.lds, poison)
        values: list[Any] = [_pointer(t, bases) for t in tensors] + list(job.numbers)
        done = machine.run(grid, [values[i] for i in kernel.places])
        results.append({p: data.copy() for p, data in storages.items()})
    for p, first in results[0].items():
        differ = np.flatnonzero(first != results[1][p])
        if len(differ):
            names = [i for i, t in enumerate(tensors) if t.numel() and t.untyped_storage().data_ptr() == p]
            raise EmulationError(f"{len(differ)} bytes of tensor {names} depend on undefined registers or LDS")
    counts.waves += done.waves
    counts.instructions += done.instructions
    counts.lane_instructions += done.lane_instructions


def _bytes(t: Tensor) -> Any:
    """The whole storage of a CPU tensor, in place."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).numpy()


def _pointer(t: Tensor, bases: dict[int, int]) -> Pointer:
    if not t.numel():
        return Pointer(0)
    storage = t.untyped_storage().data_ptr()
    return Pointer(bases[storage] + t.data_ptr() - storage)


def _extents(storage: int, size: int, tensors: tuple[Tensor, ...]) -> Any:
    """The bytes between the first and last element of each tensor in a storage."""
    allowed = np.zeros(size, np.bool_)
    for t in tensors:
        if t.numel() and t.untyped_storage().data_ptr() == storage:
            first = t.data_ptr() - storage
            last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
            allowed[first : first + last * t.element_size()] = True
    return allowed
