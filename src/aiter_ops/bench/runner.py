"""The run: every op at every shape, its contenders checked and then timed in turn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.public import explain

from . import peers
from .checking import Check, check, poisoned
from .contenders import COMPILED, EAGER, Contender, Selection, contenders, key
from .inputs import argument_sets, cache_bytes, is_large, traffic
from .limits import floor_calls, mix_of
from .timing import Call, Capture, Flush, Graph, Timing, fill, host_us, rough_us, run_rounds, sets_needed, wall

Result = dict[str, Any]
"""One op at one shape, as it stands in the results file."""


@dataclass
class Run:
    """What all measurements of a run share. problems: contenders not to be called (see `warm`)."""

    device: torch.device
    seconds: float
    selection: Selection
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = cache_bytes(self.device) if self.device.type == "cuda" else 0
        self.flush: Call = Flush(self.cache, self.device) if self.device.type == "cuda" else lambda: None


def measure(run: Run, op: Op, rows: int, width: int) -> Result:
    """Time all contenders of an op at a shape. A contender that is wrong or fails is left out with the reason."""
    kwargs = argument_sets(op, rows, width, run.device, 1)[0]
    read, written = traffic(op, kwargs, run.cache)
    cost = op.cost(**kwargs)
    result: Result = {
        "op": op.name,
        "family": op.family,
        "rows": rows,
        "width": width,
        "read": read,
        "written": written,
        "flops": cost.flops,
        "mix": mix_of(read, written),
        "large": is_large(rows),
    }
    if run.device.type == "cuda":
        return result | _on_gpu(run, op, rows, width, read + written)
    timing = wall(lambda: op.reference(**kwargs), run.seconds)
    return result | {"contenders": [_record(EAGER, "torch", timing, result, None)], "left_out": {}, "wrong": {}}


def _record(name: str, kind: str, timing: Timing, result: Result, checked: Check | None) -> Result:
    moved = result["read"] + result["written"]
    record: Result = {"name": name, "kind": kind, **asdict(timing)}
    record |= {"gbps": moved / timing.us / 1e3, "tflops": result["flops"] / timing.us / 1e6}
    return record | ({"check": asdict(checked)} if checked else {})


def _on_gpu(run: Run, op: Op, rows: int, width: int, moved: int) -> Result:
    sets = argument_sets(op, rows, width, run.device, max(2, sets_needed(moved, run.cache)))
    found, left_out = contenders(op, sets[0], rows, width, run.selection, run.problems)
    want = op.reference(**sets[0])
    capture, graphs = Capture(), dict[str, Graph]()
    checks: dict[str, Check] = {}
    wrong: dict[str, str] = {}
    eager: dict[str, Call] = {}
    for contender in found:
        try:
            checked = _checked(op, contender, sets[0], want)
            if checked.verdict == "wrong":
                (wrong if contender.ours else left_out)[contender.name] = f"wrong: {checked.detail}"
                continue
            checks[contender.name] = checked
            calls = [contender.make(kwargs) for kwargs in sets]
            eager[contender.name] = calls[0]
            graphs[contender.name] = Graph(fill(calls, rough_us(calls[0], run.flush)), capture)
        except Exception as error:
            (wrong if contender.ours else left_out)[contender.name] = peers.describe(error)
            torch.cuda.synchronize()
    del want
    kinds = {c.name: c.kind for c in found}
    yardsticks: dict[str, Graph] = {}
    if not is_large(rows):
        main_input = op.signature.tensors[0].name
        for name, calls in floor_calls([kwargs[main_input] for kwargs in sets]).items():
            calls[0]()
            yardsticks[name] = Graph(fill(calls, 1.0), capture)
    timings = run_rounds({**graphs, **yardsticks}, run.flush, run.seconds)
    shape = {"read": moved, "written": 0, "flops": op.cost(**sets[0]).flops}
    records = [_record(n, kinds[n], timings[n], shape, checks[n]) for n in graphs]
    served = explain(op, **sets[0]).provider
    for record in records:
        if record["name"] == served:
            values = tuple(sets[0].values())
            record["eager_us"] = host_us(lambda values=values: op.entry(*values))
        elif record["name"] not in (EAGER, COMPILED):
            record["eager_us"] = host_us(eager[record["name"]])
    for name in op.implementations:
        problem = run.problems.get(f"{op.name} {name}") or run.problems.get(key(op.name, rows, width, name))
        if problem:
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


def _checked(op: Op, contender: Contender, kwargs: dict[str, Any], want: Any) -> Check:
    """The first result of a contender against the reference's, in poisoned memory."""
    if contender.name == COMPILED:  # other global modes would compile it anew
        return check(op, contender.make(kwargs)(), want, contender.ours)
    with poisoned():
        got = contender.make(kwargs)()
    torch.cuda.synchronize()
    return check(op, got, want, contender.ours)


def run_all(
    run: Run,
    shapes: list[tuple[Op, int, int]],
    found: dict[str, Any],
    save: Callable[[dict[str, Any]], None],
    tell: Callable[[str], None],
) -> None:
    """Measure all shapes into ``found["results"]``; saved after each op, so that a stopped run keeps what it has."""
    results: list[Result] = found["results"]
    started = time.monotonic()
    with torch.inference_mode():
        for i, (op, rows, width) in enumerate(shapes):
            results.append(measure(run, op, rows, width))
            tell(f"{i + 1} of {len(shapes)}, {time.monotonic() - started:.0f} s: {line(results[-1])}")
            if i + 1 == len(shapes) or shapes[i + 1][0] is not op:
                save(found)
                if run.device.type == "cuda":
                    torch.cuda.empty_cache()


def line(result: Result) -> str:
    """One result in one line, fastest first."""
    timed = sorted(result["contenders"], key=lambda c: c["us"])
    times = ", ".join(f"{c['name']} {c['us']:.2f} µs" for c in timed)
    return f"{result['op']} {result['rows']}x{result['width']}: {times or 'nothing was timed'}"


def saver(path: Path | None) -> Callable[[dict[str, Any]], None]:
    """Writes the results so far to `path`, whole or not at all."""

    def save(found: dict[str, Any]) -> None:
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
        partial.replace(path)

    return save


def shapes_of(ops: list[Op], rows: tuple[int, ...], widths: tuple[int, ...]) -> Iterator[tuple[Op, int, int]]:
    for op in ops:
        for count in rows:
            for width in widths:
                yield op, count, width
