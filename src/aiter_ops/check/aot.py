"""Compiling Triton kernels for AMD GPUs that are not here, and reading what the compiler made of them.

A compile-only Triton driver names the target; nothing is run. The numbers come from the kernel's metadata in the
assembly (LLVM, "User Guide for AMDGPU Backend", code object metadata).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aiter_ops.amdgcn.compiler import compiling
from aiter_ops.core.op import Op, list_ops
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.core.provider import Implementation
from aiter_ops.core.samples import Make
from aiter_ops.providers.triton.launch import Job, compiling_for

from .matrix import Formats, dots_in, matrix_instructions

ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250")
"""Targets every Triton implementation is compiled for."""

WHOLE = "gfx942"
"""The target for which `compile_all` compiles every form; the others: the forms of samples with a model's sizes."""

WIDE_FROM = 2048
"""Rows of at least so many columns give every lane of a program 16 bytes of a 2-byte type."""


@dataclass(frozen=True)
class Wanted:
    """A compilation; whether its memory instructions must be 16 bytes wide (aligned rows of 8·k columns), and whether
    a sample with a model's sizes needs it.
    """

    job: Job
    wide: bool
    model: bool


@dataclass(frozen=True)
class Report:
    """What one compilation came to. Spills are counts of registers; scratch and lds are bytes a lane and a program.

    dots: the formats of the factors of each matrix product in the source, as Triton names them. matrix: the matrix
    instructions in the assembly.
    """

    kernel: str
    arch: str
    constants: tuple[Any, ...]
    num_warps: int
    vgprs: int
    vgpr_spills: int
    sgpr_spills: int
    scratch: int
    lds: int
    wide_loads: bool
    wide_stores: bool
    dots: tuple[Formats, ...]
    matrix: tuple[str, ...]

    @property
    def spills(self) -> int:
        return self.vgpr_spills + self.sgpr_spills


def collect(op: Op, target: Platform) -> list[Wanted]:
    """What the Triton implementation of `op` would launch for the op's samples on `target`, each form once.

    Samples that the implementation refuses there are left out; without an implementation, or where the target
    does not meet its requirements, the list is empty.
    """
    implementation = op.implementations.get("triton")
    if implementation is None or implementation.source is None or implementation.unmet(target):
        return []
    found: dict[Any, Wanted] = {}
    for sample in op._samples(_Undrawn()):
        values = _resolved(op, sample.args, sample.kwargs, target)
        tensors = [v for v in values.values() if isinstance(v, Tensor)]
        if not tensors[0].numel() or _refused(op, implementation, values, target):
            continue
        with compiling_for(target) as jobs:
            implementation.source(**values)
        matrices = [t for t in tensors if t.dim() > 1]
        wide, model = bool(matrices) and all(map(_wide, matrices)), sample.size == "model"
        for job in jobs:
            form = replace(job, numbers=_specialised(job))
            known = found.get(form, Wanted(form, False, False))
            found[form] = Wanted(form, wide or known.wide, model or known.model)
    return list(found.values())


def compile_all(archs: Sequence[str] = ARCHS, processes: int = 2) -> dict[str, list[tuple[str, bool, Report]]]:
    """Compile what every op's Triton implementation launches, each compilation once, in `processes` processes.

    Returns for every target the first op that needs each compilation, whether its memory instructions must be
    wide, and the report.
    """
    with kept_kernels() as folder:
        tasks = [(arch, part, processes, folder) for arch in archs for part in range(processes)]
        made: dict[str, list[tuple[str, bool, Report]]] = {arch: [] for arch in archs}
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            for task, reports in zip(tasks, pool.map(_compile_share, tasks), strict=True):
                made[task[0]] += reports
    return made


@contextlib.contextmanager
def kept_kernels() -> Iterator[str]:
    """The folder that TRITON_CACHE_DIR names, where kernels that were compiled before are found again by all they follow
    from (Triton keeps them by its own version, the kernel's source, target and options); else one for this use alone.
    """
    if named := os.environ.get("TRITON_CACHE_DIR"):
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="aiter_ops-aot-") as folder:
        yield folder


def _compile_share(task: tuple[str, int, int, str]) -> list[tuple[str, bool, Report]]:
    """One process's share of a target's compilations."""
    import triton

    arch, part, processes, folder = task
    triton.knobs.cache.dir = folder
    jobs = list(_wanted_for(arch).items())[part::processes]
    return [(name, wide, compile_job(job, platform_for(arch))) for job, (name, wide) in jobs]


def _wanted_for(arch: str) -> dict[Job, tuple[str, bool]]:
    """Each compilation once: the first op that needs it, and whether its memory instructions must be wide."""
    found: dict[Job, tuple[str, bool]] = {}
    for op in list_ops():
        for wanted in collect(op, platform_for(arch)):
            if wanted.model or arch == WHOLE:
                first, wide = found.get(wanted.job, (op.name, False))
                found[wanted.job] = first, wide or wanted.wide
    return found


class _Undrawn(Make):
    """Samples with the shapes and dtypes of the real ones and no values: nothing is run."""

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.empty(shape, dtype=dtype)


def _resolved(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], target: Platform) -> dict[str, Any]:
    """All arguments by name, defaults filled in, FP8 by default the target's."""
    values = dict(zip(op.parameters, args, strict=False)) | kwargs
    for p in op.signature.params:
        values.setdefault(p.name, p.default)
        if p.is_fp8_default and values[p.name] is None:
            values[p.name] = target.fp8_dtype
    return {p.name: values[p.name] for p in op.signature.params}


def _refused(op: Op, implementation: Implementation, values: dict[str, Any], target: Platform) -> bool:
    predicate = implementation.predicate(target) if implementation.predicate else None
    if predicate is None:
        return False
    positional = [values[p.name] for p in op.signature.params if not p.keyword_only]
    named = {p.name: values[p.name] for p in op.signature.params if p.keyword_only}
    return predicate(*positional, **named) is not None


def _wide(t: Tensor) -> bool:
    return t.is_contiguous() and t.shape[-1] % 8 == 0 and t.shape[-1] >= WIDE_FROM and t.data_ptr() % 16 == 0


def _specialised(job: Job) -> tuple[float, ...]:
    """The numbers, each replaced by one that Triton specialises alike."""
    free = {p.num for p in job.kernel.params if p.do_not_specialize}
    numbers: list[float] = []
    for i, value in enumerate(job.numbers, start=len(job.described) + len(job.tensors)):
        if isinstance(value, int) and i not in free:
            numbers.append(1 if value == 1 else 16 if value % 16 == 0 else 17)
        else:
            numbers.append(type(value)(3))
    return tuple(numbers)


def compile_job(job: Job, target: Platform) -> Report:
    """Compile one job for `target` (an AMD platform) and read the assembly. Raises what the compiler raises."""
    compiled = compiled_for(job, target)
    text = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"{job.kernel.__name__} for {target.arch}: the assembly has no .{name}")
        return int(found.group(1))

    return Report(
        kernel=job.kernel.__name__,
        arch=target.arch,
        constants=job.constants,
        num_warps=job.num_warps,
        vgprs=number("vgpr_count"),
        vgpr_spills=number("vgpr_spill_count"),
        sgpr_spills=number("sgpr_spill_count"),
        scratch=number("private_segment_fixed_size"),
        lds=compiled.metadata.shared,
        wide_loads=re.search(r"(global|buffer|flat)_load_(dwordx4|b128)\b", text) is not None,
        wide_stores=re.search(r"(global|buffer|flat)_store_(dwordx4|b128)\b", text) is not None,
        dots=dots_in(compiled.asm["ttir"]),
        matrix=matrix_instructions(text),
    )


def compiled_for(job: Job, target: Platform, lean: bool = True) -> Any:
    """What Triton made of one job for `target`. Raises what the compiler raises.

    lean: on AMD without what does not change the program and takes time: lines of the source, and sums that only an
    assertion, which is off, would look at.
    """
    described = ()
    if job.described:
        from triton.tools.tensor_descriptor import TensorDescriptor

        described = tuple(TensorDescriptor(_Pointer(d), [256, 256], [256, 1], [*tile]) for d, tile in job.described)
    lean = lean and target.vendor == "amd"
    with _compiler_for(target), _without_lines() if lean else contextlib.nullcontext():
        return job.kernel.warmup(
            *described,
            *(_Pointer(dtype, aligned) for dtype, aligned in job.tensors),
            *job.numbers,
            *job.constants,
            grid=(1,),
            num_warps=job.num_warps,
            num_stages=job.num_stages,
            **{"sanitize_overflow": False} if lean else {},
            **dict(job.options),
        )


@contextlib.contextmanager
def _without_lines() -> Iterator[None]:
    from triton import knobs

    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True
        yield


class _Pointer:
    """What Triton asks of a tensor argument: dtype, alignment, and that it is below 2 GiB."""

    def __init__(self, dtype: torch.dtype, aligned: bool = True) -> None:
        self.dtype, self._address = dtype, 0 if aligned else 2

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return 0


def _compiler_for(target: Platform) -> contextlib.AbstractContextManager[None]:
    """Make Triton's active driver one that only names the target."""
    if target.vendor == "nvidia":
        return compiling("cuda", int(target.arch.removeprefix("sm_")), target.wave_size)
    return compiling("hip", target.arch, target.wave_size)
