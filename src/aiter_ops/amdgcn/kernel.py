"""Any Triton kernel, compiled for an AMD GPU and executed on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .compiler import compiling
from .errors import Unsupported
from .launch import Counts, Machine, Pointer
from .memory import Memory
from .parse import parse
from .profile import Profile
from .resources import Resources, resources
from .targets import TARGETS


@dataclass(frozen=True)
class Ran:
    """What a launch came to: what it did, what it moved, what the kernel takes of the hardware, and its assembly.
    executed: by instruction of the program, how many waves executed it.
    """

    counts: Counts
    profile: Profile
    resources: Resources
    text: str
    executed: tuple[int, ...]


def run_kernel(
    kernel: Any,
    grid: int | Sequence[int] | Callable[[dict[str, Any]], Any],
    *args: Any,
    target: str = "gfx942",
    **kwargs: Any,
) -> Ran:
    """Execute a Triton kernel as machine code of `target`, as ``kernel[grid](*args, **kwargs)`` would run it there.

    kernel: a function under ``@triton.jit``. grid: programs along one to three axes, or a function of the arguments by
    name that gives them. args, kwargs: the kernel's arguments, CPU tensors of PyTorch or NumPy arrays for pointers, which
    are read and written in place; and options of the compiler (``num_warps``, ``num_stages``, ``waves_per_eu``).

    Raises EmulationError for what a program must not do (an access outside the tensors, a race in LDS, a value that nothing
    defined in a store, an address or a branch, a load that was not waited for), Unsupported for what is not modelled,
    ValueError and TypeError for wrong arguments, and what the compiler raises.
    """
    from triton.runtime.jit import JITFunction

    if not isinstance(kernel, JITFunction):
        inner = " (of an autotuned or heuristic kernel its .fn)" if hasattr(kernel, "fn") else ""
        raise TypeError(f"kernel: accepted: a function under @triton.jit{inner}; got {type(kernel).__name__}")
    if target not in TARGETS:
        raise ValueError(f"target={target!r}; accepted: {', '.join(TARGETS)}")
    given = _bound(kernel, args, kwargs)
    tensors = {name: value for name, value in given.items() if _is_tensor(value)}
    shape = _grid(grid, {**given, **kwargs})
    typed = {name: _Typed(value) if name in tensors else value for name, value in given.items()}
    options = {name: value for name, value in kwargs.items() if name not in given}
    with compiling("hip", target, TARGETS[target].lanes):
        compiled = kernel.warmup(*typed.values(), grid=shape, **options)
    text, profile = compiled.asm["amdgcn"], Profile(target)
    memory = Memory()
    pointers = dict(zip(tensors, place(memory, map(extent, tensors.values())), strict=True))
    machine = Machine(parse(text), memory, compiled.metadata.shared, profile=profile)
    kinds = dict(zip(given, compiled.src.signature.values(), strict=True))
    machine.run(shape, [pointers.get(name, given[name]) for name in given if kinds[name] != "constexpr"])
    return Ran(machine.counts, profile, resources(text, compiled.metadata.shared), text, tuple(machine.executed))


def _bound(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The kernel's arguments by name, in its order, defaults filled in."""
    names = kernel.arg_names
    if len(args) > len(names):
        raise TypeError(f"{kernel.__name__} takes {len(names)} arguments; got {len(args)}")
    given = dict(zip(names, args, strict=False))
    if twice := sorted(set(given) & set(kwargs)):
        raise TypeError(f"{kernel.__name__}: {twice[0]} is given twice")
    given |= {name: value for name, value in kwargs.items() if name in names}
    for p in kernel.params:
        if p.name not in given and not p.has_default:
            raise TypeError(f"{kernel.__name__}: {p.name} is missing")
        given.setdefault(p.name, p.default if p.has_default else None)
    for name, value in given.items():
        if isinstance(value, tuple) or hasattr(value, "block_shape"):
            raise Unsupported(f"{name}: tuples and tensor descriptors as arguments")
        if str(getattr(value, "device", "cpu")) != "cpu":
            raise ValueError(f"{name}: accepted: tensors on the CPU; got one on {value.device}")
    return {name: given[name] for name in names}


def _grid(grid: Any, values: dict[str, Any]) -> tuple[int, ...]:
    made = grid(values) if callable(grid) else grid
    shape = (made,) if isinstance(made, int) else tuple(map(int, made))
    if not 1 <= len(shape) <= 3 or min(shape) < 0:
        raise ValueError(f"grid={made!r}; accepted: one to three numbers of programs")
    return shape


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "data_ptr") or isinstance(value, np.ndarray)


class _Typed:
    """What Triton asks of a tensor: its type, its address (for alignment), whether it is below 2 GiB."""

    def __init__(self, tensor: Any) -> None:
        self.dtype = tensor.dtype
        self._address, low, high = extent(tensor)
        self._range = 0 if high - low < 1 << 31 else high - low

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return self._range


def extent(tensor: Any) -> tuple[int, int, int]:
    """Address of the first element, of the lowest byte, and of what follows the highest byte, of a tensor or array."""
    array = isinstance(tensor, np.ndarray)
    first = tensor.ctypes.data if array else tensor.data_ptr()
    size = tensor.itemsize if array else tensor.element_size()
    if 0 in tensor.shape:
        return first, first, first
    steps = tensor.strides if array else [s * size for s in tensor.stride()]
    spans = [(n - 1) * s for n, s in zip(tensor.shape, steps, strict=True)]
    return first, first + sum(min(s, 0) for s in spans), first + sum(max(s, 0) for s in spans) + size


def place(memory: Memory, extents: Iterable[tuple[int, int, int]]) -> list[Pointer]:
    """Add what extents of this process's memory cover, in place, those that overlap as one region; where they begin."""
    wanted = list(extents)
    regions: list[list[int]] = []
    for low, high in sorted((low, high) for _, low, high in wanted if high > low):
        if regions and low < regions[-1][1]:
            regions[-1][1] = max(regions[-1][1], high)
        else:
            regions.append([low, high])
    bases = [
        (low, high, memory.add(np.frombuffer((ctypes.c_uint8 * (high - low)).from_address(low), np.uint8), low % 256))
        for low, high in regions
    ]

    def moved(first: int, low: int, high: int) -> Pointer:
        if high == low:
            return Pointer(0)
        start, base = next((s, b) for s, e, b in bases if s <= low < e)
        return Pointer(base + first - start)

    return [moved(*e) for e in wanted]
