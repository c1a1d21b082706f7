"""Repeated calls of Triton implementations start exactly what the implementations start, with the new addresses.

No GPU: kernels are not run, their starts are written down. Tensors on the CPU count as tensors of device 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import aiter_ops
from aiter_ops.core.compare import own_copy
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import platform_for
from aiter_ops.providers.triton import launch, repeat

Logged = tuple[str, int, int, tuple[Any, ...]]
MACHINES = {arch: platform_for(arch) for arch in ("gfx950", "sm_90")}
OPS = [op for op in aiter_ops.list_ops() if "triton" in op.implementations]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Logged]]:
    """Starts in the short way: kernel, grid, stream, arguments."""
    starts: list[Logged] = []

    def starter(name: str) -> Callable[..., None]:
        return lambda grid, stream, arguments: starts.append((name, grid, stream, arguments))

    monkeypatch.setattr(torch.Tensor, "get_device", lambda self: 0)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 7, raising=False)
    monkeypatch.setattr(launch, "_starter", starter)
    monkeypatch.setattr(launch.Launcher, "_start", lambda self, *_: self.kernel.__name__)
    yield starts
    for launcher in launch.launchers:
        launcher._started.clear()


def copied(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(own_copy(v) if isinstance(v, torch.Tensor) else v for v in values)


class Seen:
    """One call with what it started and returned, addresses replaced by where they lie."""

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], log: list[Logged]
    ) -> None:
        log.clear()
        with repeat._Watching() as mode:
            result = fn(*args, **kwargs)
        self.inputs = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        self.made, self.more = [t for t in mode.made if t.numel()], mode.more
        self.starts = [
            (name, grid, stream, tuple(self._place(a) if type(a) is int else a for a in arguments))
            for name, grid, stream, arguments in log
        ]
        outs = result if isinstance(result, tuple) else () if result is None else (result,)
        self.results = [(t.shape, t.stride(), t.dtype, self._place(t.data_ptr())) for t in outs]

    def _place(self, number: int) -> Any:
        """An address as (which tensor, offset); other numbers as they are."""
        for kind, tensors in (("given", self.inputs), ("made", self.made)):
            for i, t in enumerate(tensors):
                if t.numel() and 0 <= number - t.data_ptr() < repeat._extent(t):
                    return kind, i, number - t.data_ptr()
        return number


def calls(op: Op, machine: Any) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Small samples that the implementation takes there, in memory that starts at multiples of 16 bytes."""
    predicate = op.implementations["triton"].predicate
    refuses = predicate(machine) if predicate else None
    for sample in op.samples(size="small"):
        args, kwargs = op.bind(sample.args, sample.kwargs, machine)
        if args[0].numel() and not (refuses and refuses(*args, **kwargs)):
            yield sample.name, args, kwargs


@pytest.mark.parametrize("arch", MACHINES)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_repeat_starts_what_the_implementation_starts(
    op: Op, arch: str, log: list[Logged], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = MACHINES[arch]
    monkeypatch.setattr(launch, "platform", lambda: machine)
    implementation = op.implementations["triton"]
    if implementation.unmet(machine):
        pytest.skip(implementation.unmet(machine) or "")
    fn = implementation.fn
    run, forms = fn.__globals__["run"], fn.__globals__["forms"]
    repeated = tried = 0
    for name, args, kwargs in calls(op, machine):
        forms.clear()
        tried += 1
        for _ in range(2):
            fn(*copied(args), **kwargs)
        (learned,) = forms.values()
        if not isinstance(learned, repeat.Repeat):
            continue
        repeated += 1
        again = copied(args)
        got, want = Seen(fn, again, kwargs, log), Seen(run, again, kwargs, log)
        assert got.starts == want.starts, name
        assert got.results == want.results, name
        assert [(t.shape, t.stride(), t.dtype) for t in got.made] == [
            (t.shape, t.stride(), t.dtype) for t in want.made
        ], name
        assert not want.more
    forms.clear()
    print(f"{op.name} {arch}: {repeated} of {tried} forms are repeated")
    if op.family in ("norm", "activation", "quant", "routing", "rope", "kv_cache", "moe", "gemm"):
        assert repeated * 2 >= tried


NORM = aiter_ops.get_op("add_rms_norm")


@pytest.fixture
def norm(log: list[Logged], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(launch, "platform", lambda: MACHINES["sm_90"])
    fn = NORM.implementations["triton"].fn
    fn.__globals__["forms"].clear()
    yield fn
    fn.__globals__["forms"].clear()


def states(fn: Callable[..., Any]) -> list[Any]:
    return [f if isinstance(f, int) else "repeat" for f in fn.__globals__["forms"].values()]


def test_each_form_is_learned_by_itself(norm: Callable[..., Any], log: list[Logged]) -> None:
    x, y, w = torch.randn(4, 64), torch.randn(4, 64), torch.ones(64)
    for _ in range(2):
        norm(x, y, w, 1e-6)
    assert states(norm) == ["repeat"]
    for other in (
        lambda: norm(x[:2], y[:2], w, 1e-6),
        lambda: norm(x, y, w, 1e-5),
        lambda: norm(x, y, None, 1e-6),
        lambda: norm(x.half(), y.half(), w, 1e-6),
        lambda: norm(x, y, w.half(), 1e-6),
        lambda: norm(x, y, w, 1e-6, 1.0),
        lambda: norm(x, y, w, 1e-6, 0.0, True),
        lambda: norm(torch.randn(64, 4).t(), y, w, 1e-6),
    ):
        before = len(states(norm))
        other()
        assert len(states(norm)) == before + 1
    with aiter_ops.use(batch_invariant=True):
        before = len(states(norm))
        norm(x, y, w, 1e-6)
        assert len(states(norm)) == before + 1


def test_what_differs_in_memory_alone_is_not_repeated(
    norm: Callable[..., Any], log: list[Logged], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, w = torch.randn(4, 64), torch.randn(4, 64), torch.ones(64)
    for _ in range(3):
        norm(x, x, w, 1e-6)  # one tensor twice: whose address a kernel was given cannot be told
    assert states(norm) == [2]
    for _ in range(3):
        norm(x, y, w, 1e-6)
    assert states(norm) == ["repeat"]
    apart = torch.randn(4 * 64 + 1)[1:].view(4, 64)
    found = next(iter(norm.__globals__["forms"].values()))
    assert found((apart, y, w)) is repeat.MISSED
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 1, raising=False)
    assert found((x, y, w)) is repeat.MISSED


def test_wrong_arguments_are_checked_whatever_was_learned(norm: Callable[..., Any], log: list[Logged]) -> None:
    x, w = torch.randn(4, 64), torch.ones(64)
    for _ in range(3):
        norm(x, x + 1, w, 1e-6)
    for wrong in (
        (x, x[:, :32], w, 1e-6),
        (x, x.double(), w, 1e-6),
        (x, x, w, "1"),
        (x, x, [1.0], 1e-6),
        (x, x, w, -1.0),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^add_rms_norm: "):
            norm(*wrong)


def test_forms_without_end_are_forgotten(
    norm: Callable[..., Any], log: list[Logged], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeat, "MOST_FORMS", 5)
    x, y, w = torch.randn(12, 64), torch.randn(12, 64), torch.ones(64)
    for rows in range(1, 13):
        norm(x[:rows], y[:rows], w, 1e-6)
    assert 0 < len(states(norm)) <= 5


def test_a_call_that_computes_with_torch_is_not_repeated(log: list[Logged]) -> None:
    given, forms = (torch.randn(4, 64),), {}
    for _ in range(7):
        repeat.learn(forms, "form", forms.get("form"), given, lambda: given[0] * 2)
        if forms["form"] == repeat.MOST_TRIES:
            break
    assert forms == {"form": repeat.MOST_TRIES}
