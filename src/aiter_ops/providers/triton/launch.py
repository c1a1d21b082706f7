"""How a Triton kernel of ours is started: on its tensors' device and stream, with little Python per call.

Every kernel takes its parameters in this order: tensors, then numbers, then constants (``tl.constexpr``). After the
first start Triton's own specialisation is not asked again where its answer must be the same: constants, dtypes and
numbers (but for row counts, which are not specialised on) as before, all pointers 16-byte aligned, tensors below 2 GiB.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import triton

from aiter_ops.core import runtime
from aiter_ops.core.platforms import Platform, platform

_ALIGNED = 15
_MOST_STARTED = 4096
_BIG = 2**31


Options = tuple[tuple[str, Any], ...]
"""Options of the compiler beside warps and stages, by name (AMD: ``waves_per_eu``, ``matrix_instr_nonkdim``)."""


@dataclass(frozen=True)
class Job:
    """One compilation: a kernel with the values its signature and constants follow from."""

    kernel: Any
    tensors: tuple[tuple[torch.dtype, bool], ...]
    numbers: tuple[float, ...]
    constants: tuple[Any, ...]
    num_warps: int
    num_stages: int
    options: Options = ()
    described: tuple[tuple[torch.dtype, tuple[int, ...]], ...] = ()


Start = Callable[[int, int, tuple[Any, ...]], None]
"""Starts a compiled kernel: grid, stream, all arguments in the kernel's order with tensors as addresses."""


def _starter(made: Any) -> Start:
    """The shortest way to start a compiled kernel again. Triton 3.6 on NVIDIA: past a Python layer that only allocates
    scratch memory, where the kernel needs none.
    """
    run, function, metadata = made.run, made.function, made.packed_metadata
    short = triton.__version__.startswith("3.6.") and type(run).__name__ == "CudaLauncher"
    if short and not run.global_scratch_size and not run.profile_scratch_size:
        launch, flags = run.launch, (run.launch_cooperative_grid, run.launch_pdl, None, None)

        def start(grid: int, stream: int, arguments: tuple[Any, ...]) -> None:
            launch(grid, 1, 1, stream, function, *flags, metadata, None, None, None, *arguments)

    else:

        def start(grid: int, stream: int, arguments: tuple[Any, ...]) -> None:
            run(grid, 1, 1, stream, function, metadata, None, None, None, *arguments)

    return start


class Started(NamedTuple):
    """A start in the short way: by what, how many programs, and its arguments, numbers and constants in one."""

    start: Start
    grid: int
    tensors: tuple[torch.Tensor, ...]
    tail: tuple[Any, ...]


class Watch:
    """While `log` is a list, one thread's starts are noted in it; None for one that cannot be repeated as it was."""

    def __init__(self) -> None:
        self.log: list[Started | None] | None = None
        self._thread, self._lock = 0, threading.RLock()

    def note(self, started: Started | None) -> None:
        if self.log is not None and threading.get_ident() == self._thread:
            self.log.append(started)

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[Started | None]]:
        """The starts of this thread from now on; other threads wait with theirs to be watched."""
        with self._lock:
            self._thread, self.log = threading.get_ident(), []
            try:
                yield self.log
            finally:
                self.log = None


watch = Watch()


def _small(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether Triton may address every tensor with 32 bits; only the AMD back end specialises on it."""
    return not torch.version.hip or all(t.nbytes < _BIG for t in tensors)


def _forms(described: tuple[Any, ...]) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
    """All that Triton specialises on of tensor descriptors."""
    return tuple((d.base.dtype, tuple(d.block_shape)) for d in described)


class _Compiling:
    """While `target` is set, launches are collected as jobs for it instead of being run."""

    target: Platform | None = None
    jobs: ClassVar[list[Job]] = []
    run: ClassVar[Callable[[Job, int, tuple[torch.Tensor, ...]], None] | None] = None


def machine() -> Platform:
    """The platform tile choices are made for: this machine, or the one being compiled for."""
    return _Compiling.target or platform()


def batch_invariant() -> bool:
    """Whether tiles, split-K and orders of summation must not follow the number of rows (or tokens).

    Kernels without sums (maxima and arithmetic on single elements round the same in any tile) need not ask.
    """
    return runtime.state.policy.batch_invariant


@contextlib.contextmanager
def compiling_for(target: Platform) -> Iterator[list[Job]]:
    """Collect what would be launched on `target`; nothing runs, and results hold whatever memory held."""
    _Compiling.target, _Compiling.jobs = target, []
    try:
        yield _Compiling.jobs
    finally:
        _Compiling.target = None


@contextlib.contextmanager
def running_for(target: Platform, run: Callable[[Job, int, tuple[torch.Tensor, ...]], None]) -> Iterator[None]:
    """Hand every launch on `target` to `run` as it comes: the job, the grid, the tensors."""
    with compiling_for(target):
        _Compiling.run = run
        try:
            yield
        finally:
            _Compiling.run = None


launchers: list[Launcher] = []
"""All of them, of the rooms that were imported."""


class Launcher:
    """Starts one kernel. `free`: how many of the first numbers Triton does not specialise on (row counts)."""

    def __init__(self, kernel: Any, free: int = 1) -> None:
        self.kernel = kernel
        self.free = free
        self._started: dict[Any, Start] = {}
        launchers.append(self)

    def __call__(
        self,
        grid: int,
        tensors: tuple[torch.Tensor, ...],
        numbers: tuple[float, ...],
        constants: tuple[Any, ...],
        num_warps: int = 4,
        num_stages: int = 1,
        options: Options = (),
        described: tuple[Any, ...] = (),
    ) -> None:
        """Start `grid` programs. Tensors that a constant switches off may be any other tensor of the call.

        described: tensor descriptors (``triton.tools.tensor_descriptor``), the kernel's first parameters.
        """
        device = tensors[0].get_device()
        if device < 0 or _Compiling.target is not None:
            self._apart(grid, tensors, numbers, constants, num_warps, num_stages, options, described)
            return
        if device != torch._C._cuda_getDevice():
            with torch.cuda.device(device):
                self(grid, tensors, numbers, constants, num_warps, num_stages, options, described)
            return
        pointers = [t.data_ptr() for t in tensors]
        # all that Triton specialises on: constants, dtypes, the numbers that are not free (by value), alignment, size
        key = (device, num_warps, num_stages, options, constants, numbers[self.free :], *[t.dtype for t in tensors])
        if described:
            key = (*key, *_forms(described))
        start = self._started.get(key)
        short = not functools.reduce(operator.or_, pointers) & _ALIGNED and _small(tensors)
        if start is not None and short:
            start(grid, torch._C._cuda_getCurrentRawStream(device), (*described, *pointers, *numbers, *constants))
            if watch.log is not None:
                watch.note(None if described else Started(start, grid, tensors, (*numbers, *constants)))
            return
        if watch.log is not None:
            watch.note(None)
        made = self._start(grid, (*described, *tensors, *numbers, *constants), num_warps, num_stages, options)
        if start is None and short:
            if len(self._started) >= _MOST_STARTED:
                self._started.clear()
            self._started[key] = _starter(made)

    def _start(self, grid: int, arguments: tuple[Any, ...], num_warps: int, num_stages: int, options: Options) -> Any:
        """Start by Triton's own way, which compiles where it has to; the compiled kernel."""
        return self.kernel[(grid,)](*arguments, num_warps=num_warps, num_stages=num_stages, **dict(options))

    def _apart(
        self,
        grid: int,
        tensors: Any,
        numbers: Any,
        constants: Any,
        num_warps: int,
        num_stages: int,
        options: Options,
        described: tuple[Any, ...],
    ) -> None:
        """Collection for ahead-of-time compilation, and Triton's interpreter on CPU tensors."""
        if _Compiling.target is None:
            values = (*described, *tensors, *numbers, *constants)
            self.kernel[(grid,)](*values, num_warps=num_warps, num_stages=num_stages)
            return
        forms = tuple((t.dtype, t.data_ptr() % 16 == 0) for t in tensors)
        job = Job(self.kernel, forms, numbers, constants, num_warps, num_stages, options, _forms(described))
        if _Compiling.run is not None:
            _Compiling.run(job, grid, tensors)
            return
        _Compiling.jobs.append(job)


def fp8_predicate(target: Platform, dtype: torch.dtype | None) -> str | None:
    """Why `target` cannot make codes of `dtype`, or None. int8 is made everywhere."""
    if dtype == torch.int8 or dtype in target.fp8_types or target.triton_interpret:
        return None
    name = str(dtype).removeprefix("torch.")
    has = ", ".join(str(t).removeprefix("torch.") for t in target.fp8_types) or "no FP8 type"
    return f"{target.arch} has {has}; asked for {name}"


def as_rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int, int]:
    """x [..., N] as rows: (tensor, row count, N, row stride in elements), copied only where no view gives unit
    stride in a row and one stride between rows. Where batch invariance is asked for, always contiguous and aligned:
    what the compiler knows of strides and addresses decides which lane holds which columns, and so the order of sums.
    """
    width = x.shape[-1]
    if batch_invariant():
        x = x.contiguous()
        x = x.clone() if x.data_ptr() & _ALIGNED else x
    if x.is_contiguous():
        return x, x.numel() // width, width, width
    if x.dim() == 2 and x.stride(1) == 1:
        return x, x.shape[0], width, x.stride(0)
    flat = x.reshape(-1, width)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    return flat, flat.shape[0], width, flat.stride(0)
