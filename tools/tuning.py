"""The driver of the tuning tools: times candidates of ops on this machine's GPU and prints a table, the fastest first.

Each shape: all candidates, the choice the package makes by itself and another product replay CUDA graphs over inputs
that together pass the cache, in turn, after each was compared with the reference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from aiter_ops import get_op, platform
from aiter_ops.bench.inputs import Sets, cache_bytes
from aiter_ops.bench.timing import Capture, Flush, Graph, fill, rough_us, run_rounds, sets_needed

Shape = tuple[int, ...]
"""M, N, K of a product; rows and what else an op's sizes are"""

Call = Callable[[], Any]

TOP = 8
"""Candidates shown of each shape."""


@dataclass(frozen=True)
class Study:
    """How one op is tuned. draw: sets of arguments by name; run: the op with a candidate; peer: another library's
    product."""

    shapes: tuple[Shape, ...]
    draw: Callable[[Sets, Shape], dict[str, list[Any]]]
    run: Callable[[dict[str, Any], Any], Any]
    candidates: Callable[[Shape], Iterator[tuple[str, Any]]]
    own: Callable[[Shape], Any]
    peer: Callable[[dict[str, Any]], Any]


def measure(
    this: Study, name: str, shape: Shape, seconds: float, share: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """A row for every candidate that is right. share: (i, n): only compile every nth, from the ith on."""
    op, device = get_op(name), torch.device("cuda")
    first = {k: v[0] for k, v in this.draw(Sets(1, device, 0), shape).items()}
    bytes_ = op.cost(**first).bytes
    calls = {"own": this.own(shape), **dict(this.candidates(shape))}
    if share:
        for i, choice in enumerate(calls.values()):
            if i % share[1] == share[0]:
                attempt(lambda choice=choice: this.run(first, choice))
        return []
    sets = this.draw(Sets(sets_needed(bytes_, cache_bytes(device)), device, 0), shape)
    given = [dict(zip(sets, values, strict=True)) for values in zip(*sets.values(), strict=True)]
    want, flush, capture = op.reference(**given[0]), Flush(cache_bytes(device), device), Capture()
    graphs, rows = {}, []
    runs = {how: (lambda g, choice=choice: this.run(g, choice)) for how, choice in calls.items()}
    for how, call in {**runs, "torch": this.peer}.items():
        got = attempt(lambda call=call: call(given[0]))
        verdict = op.compare(got, want) if isinstance(got, torch.Tensor) else None
        if verdict is None or (how != "torch" and not verdict.ok):
            rows.append({"tile": how, "us": float("inf"), "error": verdict.detail if verdict else str(got)[:90]})
            continue
        each = [lambda g=g, call=call: call(g) for g in given]
        graphs[how] = Graph(fill(each, rough_us(each[0], flush)), capture)
    for how, timing in run_rounds(graphs, flush, seconds * len(graphs)).items():
        rates = {"GB/s": bytes_ / timing.us / 1e3, "TFLOP/s": op.cost(**first).flops / timing.us / 1e6}
        rows.append({"tile": how, "us": timing.us, "p90": timing.p90, **{k: round(v) for k, v in rates.items()}})
    return sorted(rows, key=lambda row: row["us"])


def attempt(call: Call) -> Any:
    try:
        out = call()
        torch.cuda.synchronize()
        return out
    except Exception as error:  # out of shared memory, or a tile the compiler does not take
        return (str(error).strip().splitlines() or [type(error).__name__])[0]


def chosen(studies: dict[str, Study], options: argparse.Namespace) -> Iterator[tuple[str, Shape]]:
    """The ops and shapes asked for."""
    rows, factors = (set(filter(None, text.split(","))) for text in (options.rows, options.factors))
    for name in options.ops or studies:
        for shape in studies[name].shapes:
            m, factor = str(shape[0]), "x".join(map(str, shape[1:]))
            if m in (rows or {m}) and factor in (factors or {factor}):
                yield name, shape


def main(studies: dict[str, Study], doc: str | None) -> None:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", help=f"of {', '.join(studies)}; all by default")
    parser.add_argument("--rows", default="", help="only so many rows, by comma")
    parser.add_argument("--factors", default="", help="only these other sizes (NxK), by comma")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each candidate")
    parser.add_argument("--json", help="write all rows to a file")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    options = parser.parse_args()
    share = tuple(map(int, options.share.split(","))) if options.share else None
    if not share:  # children fill the compiler's cache side by side
        count = max(1, min(8, (os.cpu_count() or 2) - 1))
        for child in [subprocess.Popen([sys.executable, *sys.argv, f"--share={i},{count}"]) for i in range(count)]:
            child.wait()
    found: dict[str, list[dict[str, Any]]] = {}
    for name, shape in chosen(studies, options):
        with torch.inference_mode():
            rows = measure(studies[name], name, shape, options.seconds, share)
        torch.cuda.empty_cache()
        if share:
            continue
        found[title := f"{name} {shape[0]} rows, {'x'.join(map(str, shape[1:]))}"] = rows
        print(f"\n{title}")
        for i, row in enumerate(rows):
            if i < TOP or row["tile"] in ("own", "torch"):
                print("  " + "  ".join(f"{v:9.2f}" if isinstance(v, float) else f"{v!s:>8}" for v in row.values()))
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump({"machine": platform().as_dict(), "rows": found}, file, indent=1)
