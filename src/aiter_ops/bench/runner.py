"""The run: every op at every case, its contenders checked and then timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from aiter_ops.core.op import Op, own_copy
from aiter_ops.core.public import explain

from . import peers
from .cases import Case
from .cases.case import Tensors
from .checking import Check, check, outcome_of, poisoned
from .contenders import COMPILED, EAGER, Contender, Selection, contenders, problem_of
from .inputs import argument_sets, cache_bytes, is_large, traffic
from .limits import floor_calls, mix_of
from .timing import Call, Capture, Flush, Graph, Timed, Timing, fill, host_us, rough_us, run_rounds, sets_needed, wall

Result = dict[str, Any]
"""One op at one case, as it stands in the results file."""

HOST_LIMIT_US = 1e3
"""The host time of longer calls is not asked for: it is hidden behind the GPU's."""

EAGER_SECONDS = 0.25
"""A reference that takes longer is not timed."""


@dataclass
class Run:
    """What all measurements of a run share. problems: contenders not to be called, by `contenders.key`."""

    device: torch.device
    seconds: float
    selection: Selection
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = cache_bytes(self.device) if self.device.type == "cuda" else 0
        self.flush: Call = Flush(self.cache, self.device) if self.device.type == "cuda" else lambda: None


def measure(run: Run, op: Op, case: Case) -> Result:
    """Time all contenders of an op at a case. A contender that is wrong or fails is left out with the reason."""
    kwargs = argument_sets(op, case, run.device, 1, thin=run.device.type == "cuda")[0]
    read, written = traffic(op, kwargs, run.cache)
    result: Result = case.record() | {
        "family": op.family,
        "read": read,
        "written": written,
        "flops": op.cost(**kwargs).flops,
        "dots": case.dots,
        "mix": mix_of(read, written),
        "large": is_large(op, case, kwargs),
    }
    if run.device.type == "cuda":
        del kwargs
        return result | _on_gpu(run, op, case, result)
    timing = wall(lambda: op.reference(**kwargs), run.seconds)
    return result | {"contenders": [_record(EAGER, "torch", timing, result, None)], "left_out": {}, "wrong": {}}


def _record(name: str, kind: str, timing: Timing, result: Result, checked: Check | None) -> Result:
    moved = result["read"] + result["written"]
    record: Result = {"name": name, "kind": kind, **asdict(timing)}
    record |= {"gbps": moved / timing.us / 1e3, "tflops": result["flops"] / timing.us / 1e6}
    return record | ({"check": asdict(checked)} if checked else {})


class Timer:
    """Makes contenders' calls ready to be timed: in a graph, or called where a graph cannot hold them."""

    def __init__(self, run: Run) -> None:
        self.run, self.capture = run, Capture()

    def ready(self, contender: Contender, calls: list[Call]) -> Timed:
        filled = fill(calls, rough_us(calls[0], self.run.flush))
        if contender.eager:
            return Timed(filled)
        try:
            return Graph(filled, self.capture)
        except Exception:
            if contender.ours:
                raise
            torch.cuda.synchronize()  # a broken context raises again
            self.capture = Capture()  # the old one's memory is left as a broken recording
            return Timed(filled)


def _on_gpu(run: Run, op: Op, case: Case, result: Result) -> Result:
    sets = argument_sets(op, case, run.device, max(2, sets_needed(result["read"] + result["written"], run.cache)))
    found, left_out = contenders(op, sets[0], case, result["large"], run.selection, run.problems)
    wanted = Wanted(op, case, sets[0], result["flops"])
    if wanted.seconds > EAGER_SECONDS and any(c.name == EAGER for c in found):
        found = [c for c in found if c.name != EAGER]
        left_out[EAGER] = f"takes {wanted.seconds:.1f} s a call, not timed"
    timer, timed = Timer(run), dict[str, Timed]()
    checks: dict[str, Check] = {}
    wrong: dict[str, str] = {}
    first: dict[str, Call] = {}
    for contender in found:
        try:
            checked = wanted.check(contender)
            if checked.verdict == "wrong":
                (wrong if contender.ours else left_out)[contender.name] = f"wrong: {checked.detail}"
                continue
            checks[contender.name] = checked
            calls = [contender.make(kwargs) for kwargs in sets]
            first[contender.name] = calls[0]
            timed[contender.name] = timer.ready(contender, calls)
        except Exception as error:
            (wrong if contender.ours else left_out)[contender.name] = peers.describe(error)
            torch.cuda.synchronize()
    del wanted
    kinds = {c.name: c.kind for c in found}
    yardsticks = {} if result["large"] or case.floor is None else _yardsticks(case.floor, sets, timer.capture)
    timings = run_rounds({**timed, **yardsticks}, run.flush, run.seconds)
    records = [_record(n, kinds[n], timings[n], result, checks[n]) for n in timed]
    served = explain(op, **sets[0]).provider
    for record in records:
        if record["name"] in (EAGER, COMPILED) or record["eager"] or record["us"] > HOST_LIMIT_US:
            continue
        call = first[record["name"]]
        if record["name"] == served:
            call = _entry_call(op, sets[0])
        record["eager_us"] = host_us(call)
    for name in op.implementations:
        if problem := problem_of(run.problems, op.name, case.name, name):
            wrong[name] = problem
    floors = [timings[n].us for n in yardsticks if n != "empty"]
    return {
        "contenders": records,
        "left_out": {n: r for n, r in left_out.items() if n not in wrong},
        "wrong": wrong,
        "sets": len(sets),
        "floor_us": min(floors) if floors else None,
        "empty_us": timings["empty"].us if floors else None,
    }


def _entry_call(op: Op, kwargs: dict[str, Any]) -> Call:
    """A call of the op as its users call it: tensors by position as far as the signature lets them."""
    values, named = op.bind((), kwargs)
    return lambda: op.entry(*values, **named)


def _yardsticks(name: str, sets: list[dict[str, Any]], capture: Capture) -> dict[str, Timed]:
    found: dict[str, Timed] = {}
    for label, calls in floor_calls([kwargs[name] for kwargs in sets]).items():
        calls[0]()
        found[label] = Graph(fill(calls, 1.0), capture)
    return found


class Wanted:
    """What the reference makes of a case's arguments, or of the part the case names; every contender is held against it.

    seconds: what a whole call of the reference takes. What the op writes to is drawn anew for each contender, so that
    none is right by what another one wrote.
    """

    def __init__(self, op: Op, case: Case, kwargs: dict[str, Any], flops: int) -> None:
        self.op, self.kwargs = op, kwargs
        self.drawn = {n: own_copy(kwargs[n]) for n in op.signature.mutates if kwargs[n] is not None}
        part, pick = case.part(kwargs) if case.part else (kwargs, tuple)
        self.pick: Callable[[Tensors], Tensors] = pick
        self.outcome, seconds = self._timed(part)
        self.unknown = any(t.is_floating_point() and bool(t.float().isnan().any()) for t in self.outcome)
        if seconds > EAGER_SECONDS:  # the first call may have waited for libraries
            seconds = min(seconds, self._timed(part)[1])
        self.seconds = seconds * (flops / max(1, op.cost(**part).flops) if case.part else 1)

    def _timed(self, kwargs: dict[str, Any]) -> tuple[tuple[torch.Tensor, ...], float]:
        started = time.perf_counter()
        outcome = self.op.run(self.op.reference, (), kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return outcome, time.perf_counter() - started

    def fresh(self) -> dict[str, Any]:
        """The arguments, what is written to as it was drawn."""
        return self.kwargs | {n: own_copy(t) for n, t in self.drawn.items()}

    def check(self, contender: Contender) -> Check:
        """The first outcome of a contender, in poisoned memory."""
        if contender.name == EAGER:
            return Check("ok", 0.0, "the reference itself")
        if self.unknown:  # NaN equals NaN, so nothing would be wrong there
            return Check(
                "wrong", float("inf"), "the reference gives NaN for these arguments, which nothing is held against"
            )
        kwargs = self.fresh()
        if contender.name == COMPILED:  # other global modes would compile it anew
            got = contender.make(kwargs)()
        else:
            if contender.kind == "peer":
                contender.make(self.fresh())  # chooses tiles where none are known; poisoning costs time
            with poisoned():
                got = contender.make(kwargs)()
            torch.cuda.synchronize()
        if self.op.signature.mutates:
            got = self.pick(outcome_of(self.op, kwargs, got))
        return check(self.op, got, self.outcome, contender.ours, self.kwargs)


def run_all(
    run: Run,
    wanted: list[tuple[Op, Case]],
    found: dict[str, Any],
    save: Callable[[dict[str, Any]], None],
    tell: Callable[[str], None],
    until: float = float("inf"),
) -> None:
    """Measure all cases into ``found["results"]``; saved after each, so that a stopped run keeps what it has.

    until: of the monotonic clock: no case is begun after it; those left are named in ``found["left"]``.
    """
    results: list[Result] = found["results"]
    started = time.monotonic()
    with torch.inference_mode():
        for i, (op, case) in enumerate(wanted):
            if time.monotonic() > until:
                found["left"] = [f"{op.name} {case.name}" for op, case in wanted[i:]]
                tell(f"out of time: {len(wanted) - i} of {len(wanted)} cases are left")
                break
            results.append(measure(run, op, case))
            found["seconds"] = time.monotonic() - started
            tell(f"{i + 1} of {len(wanted)}, {found['seconds']:.0f} s: {line(results[-1])}")
            save(found)
            if run.device.type == "cuda":
                torch.cuda.empty_cache()


def line(result: Result) -> str:
    """One result in one line, fastest first."""
    timed = sorted(result["contenders"], key=lambda c: c["us"])
    times = ", ".join(f"{c['name']} {c['us']:.2f} µs" for c in timed)
    return f"{result['op']} {result['case']}: {times or 'nothing was timed'}"
