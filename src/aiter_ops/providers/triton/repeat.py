"""Calls like one that was made before: what such a call allocates and starts is known, and done again without the
Python between.

What a Triton implementation does follows from shapes, strides, dtypes and devices of its tensors and from its other
arguments, never from values in memory. The second call of a form is watched; where it did nothing but allocate and
start kernels in the short way (see `launch`), the calls after it repeat that: new memory of the same sizes, the same
kernels with the addresses of the new tensors. Checks of arguments are part of what need not be done again.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aiter_ops.core import codegen
from aiter_ops.core.schema import Signature

from .launch import Started, batch_invariant, watch

MOST_FORMS = 4096
"""Forms kept for an op; with more, all are forgotten."""

MOST_TRIES = 4
"""A form that could not be repeated after so many watched calls is not tried again."""

MISSED = object()
"""What a repeat returns where it does not fit after all."""

_ALIGNED = 15
_QUICK: Callable[..., Tensor] | None
try:
    from torch._C._dynamo.guards import _empty_strided_cuda as _QUICK
except ImportError:
    _QUICK = None
"""What Inductor's code allocates with on the current GPU, a third of the time of `new_empty`; None where torch has none."""

_NEW = frozenset(
    getattr(torch.ops.aten, name) for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
)


class _Memory(NamedTuple):
    """A tensor that was allocated, to be allocated again."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def like(self, first: Tensor) -> Callable[[Tensor], Tensor]:
        """How to make it the fastest, given the call's first tensor, whose form does not change."""
        shape, stride, dtype = self
        if _QUICK is not None and first.is_cuda:
            # no public interface: tried once, so that a release of torch where it does otherwise is served too
            with contextlib.suppress(Exception):
                made = _QUICK(shape, stride, dtype)
                if (made.shape, made.stride(), made.dtype, made.device) == (shape, stride, dtype, first.device):
                    return lambda x: _QUICK(shape, stride, dtype)
        if torch.empty(shape, device="meta").stride() == stride:
            return lambda x: x.new_empty(shape, dtype=dtype)
        return lambda x: x.new_empty_strided(shape, stride, dtype=dtype)


class _Result(NamedTuple):
    """A returned tensor: which memory, and the view of it, None for all of it as it was made."""

    memory: int
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None


class Repeat:
    """One form of call: `memories` to allocate, then `starts`, each with where its addresses come from.

    Addresses are numbered: of the tensors given, then of the memories; the last is 0, that of empty tensors.
    """

    def __init__(
        self,
        device: int,
        memories: tuple[Callable[[Tensor], Tensor], ...],
        starts: tuple[tuple[Any, int, Any, tuple[Any, ...]], ...],
        results: tuple[_Result, ...],
        single: bool,
    ) -> None:
        self.device, self.memories, self.starts, self.results, self.single = device, memories, starts, results, single
        self.whole = single and results[0].view is None

    def __call__(self, given: tuple[Tensor | None, ...]) -> Any:
        """The result for tensors of the form; `MISSED` where one lies otherwise or another device is current."""
        addresses = [t.data_ptr() for t in given if t is not None]
        first = given[0]
        assert first is not None
        for address in addresses:
            if address & _ALIGNED:
                return MISSED
        if self.device != torch._C._cuda_getDevice():
            return MISSED
        made = [make(first) for make in self.memories]
        for t in made:
            addresses.append(t.data_ptr())
        addresses.append(0)
        stream = torch._C._cuda_getCurrentRawStream(self.device)
        for start, grid, places, tail in self.starts:
            start(grid, stream, (*places(addresses), *tail))
        if self.whole:
            return made[self.results[0].memory]
        found = tuple([made[r.memory] if r.view is None else made[r.memory].as_strided(*r.view) for r in self.results])
        return found[0] if self.single else found or None


class _Watching(TorchDispatchMode):
    """Notes memory that is allocated, and whether torch is asked for anything but that and views."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self.more = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _NEW:
            self.made.append(result)
        elif not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            self.more = True
        return result


def around(sig: Signature, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` of an op with this signature, forms of calls remembered."""
    names = [p.name for p in sig.tensors]
    parts = []
    for p in sig.params:
        if p.is_tensor:
            form = f"({p.name}.shape, {p.name}.stride(), {p.name}.dtype, {p.name}.get_device())"
            parts.append(f"None if {p.name} is None else {form}" if p.optional else form)
        else:
            parts.append(f"(*{p.name},)" if p.length else p.name)
    body = (
        "    if functorch_level() is not None:\n"
        f"        return run({sig.call})\n"
        f"    try:\n        form = ({', '.join(parts)}, batch_invariant())\n        found = forms.get(form)\n"
        f"    except Exception:\n        return run({sig.call})\n"
        f"    if found.__class__ is Repeat:\n        result = found(({', '.join(names)},))\n"
        f"        return run({sig.call}) if result is MISSED else result\n"
        f"    if found == MOST_TRIES:\n        return run({sig.call})\n"
        f"    return learn(forms, form, found, ({', '.join(names)},), lambda: run({sig.call}))\n"
    )
    cells = {"run": run, "forms": {}, "Repeat": Repeat, "MISSED": MISSED, "MOST_TRIES": MOST_TRIES}
    return codegen.build("repeated", sig, body, {**cells, "learn": learn, "batch_invariant": batch_invariant})


def learn(
    forms: dict[Any, Any], form: Any, tries: int | None, given: tuple[Tensor | None, ...], run: Callable[[], Any]
) -> Any:
    """Run a call of a form that cannot be repeated yet; from its second call on, watch it."""
    if tries is None:
        if len(forms) >= MOST_FORMS:
            forms.clear()
        forms[form] = 0
        return run()
    mode = _Watching()
    with watch.watching() as log, mode:
        result = run()
    repeat = None if mode.more else repeat_of(given, mode.made, log, result)
    forms[form] = repeat or tries + 1
    return result


def repeat_of(
    given: tuple[Tensor | None, ...], made: list[Tensor], log: list[Started | None], result: Any
) -> Repeat | None:
    """What a watched call came to, or None where that is not all it did."""
    inputs = [t for t in given if t is not None]
    made = [t for t in made if t.numel()]
    if not log or any(t.data_ptr() & _ALIGNED for t in inputs):
        return None
    starts = []
    for started in log:
        if started is None:
            return None
        places = [_place(t, inputs, made) for t in started.tensors]
        if None in places:
            return None
        starts.append((started.start, started.grid, _picker(places), started.tail))
    outs = result if isinstance(result, tuple) else () if result is None else (result,)
    results = [_result(t, made) for t in outs]
    if None in results:
        return None
    first = inputs[0]
    memories = tuple(_Memory(tuple(t.shape), t.stride(), t.dtype).like(first) for t in made)
    return Repeat(first.get_device(), memories, tuple(starts), tuple(results), isinstance(result, Tensor))  # type: ignore[arg-type]


def _extent(t: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    return t.element_size() * (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)))


def _place(t: Tensor, inputs: list[Tensor], made: list[Tensor]) -> tuple[int, int] | None:
    """Which of all tensors an argument of a kernel lies in, and how far from its start; None where that is not clear."""
    address = t.data_ptr()
    if not address:
        return len(inputs) + len(made), 0
    for first, tensors in ((0, inputs), (len(inputs), made)):
        exact = [i for i, s in enumerate(tensors) if s.data_ptr() == address]
        inside = exact or [i for i, s in enumerate(tensors) if 0 < address - s.data_ptr() < _extent(s)]
        if len(inside) == 1:
            return first + inside[0], address - tensors[inside[0]].data_ptr()
        if inside:
            return None
    return None


def _picker(places: list[Any]) -> Callable[[list[int]], tuple[int, ...]]:
    """The addresses at `places` (number, offset) out of a list."""
    numbers, offsets = [n for n, _ in places], [o for _, o in places]
    if any(offsets):
        return lambda addresses: tuple([addresses[n] + o for n, o in places])
    if len(numbers) == 1:
        only = numbers[0]
        return lambda addresses: (addresses[only],)
    return operator.itemgetter(*numbers)


def _result(t: Tensor, made: list[Tensor]) -> _Result | None:
    """Where a returned tensor lies; None where it is nothing that was allocated in the call."""
    for i, memory in enumerate(made):
        if memory.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() and memory.dtype == t.dtype:
            same = (t.shape, t.stride(), t.storage_offset()) == (memory.shape, memory.stride(), 0)
            return _Result(i, None if same else (tuple(t.shape), t.stride(), t.storage_offset()))
    return None
