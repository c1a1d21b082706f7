"""A whole run of bench: compile, measure the machine, time every case; returns what stands in the results file."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import aiter_ops
from aiter_ops.core.op import Op

from . import limits, machine, peers, results, runner, warm
from .cases import Case, Shapes, cases
from .contenders import Selection, configure_compiler

COMPILING = 0.4
"""Share of a run's minutes after which compiling stops."""


@dataclass(frozen=True)
class Session:
    """What was asked for. workers: processes that compile, 0: one less than cores. rules: as in ``AITER_OPS``. minutes:
    for all of it, 0: without end; compiling gets two fifths at most."""

    ops: list[Op]
    shapes: Shapes
    selection: Selection
    seconds: float = 0.3
    workers: int = 0
    rules: str = ""
    folder: Path | None = None
    save_to: Path | None = None
    minutes: float = 0.0

    def wanted(self) -> list[tuple[Op, Case]]:
        """In the order in which they are timed: op by op, or where time may run out every op's n-th case in turn."""
        every = [(i, op, case) for op in self.ops for i, case in enumerate(cases(op, self.shapes))]
        return [(op, case) for _, op, case in (sorted(every, key=lambda e: e[0]) if self.minutes else every)]


def measure_all(session: Session, tell: Callable[[str], None]) -> dict[str, Any]:
    """Raises ValueError where no case is wanted."""
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = session.wanted()
    if not wanted:
        raise ValueError("no case of these ops has such a name")
    run = runner.Run(device, session.seconds, session.selection)
    found = _header(session, device.type == "cuda")
    save = results.saver(session.save_to)
    with aiter_ops.use(session.rules):
        if device.type == "cuda":
            _prepare(session, run, wanted, found, tell)
            found["compile_seconds"] = time.monotonic() - started
            tell(f"compiled and limits measured, {found['compile_seconds']:.0f} s: {_rates(found)}")
        else:
            tell("no GPU: only the references are timed, by wall clock on the CPU")
        until = started + 60 * session.minutes if session.minutes else float("inf")
        runner.run_all(run, wanted, found, save, tell, until)
    found["problems"] = run.problems
    found["clocks"] |= {"after": machine.clocks()} if device.type == "cuda" else {}
    found["seconds"], found["stopped"] = time.monotonic() - started, bool(found.get("left"))
    save(found)
    return found


def _header(session: Session, gpu: bool) -> dict[str, Any]:
    asked = {name: value for name, value in asdict(session.shapes).items() if name != "gpu"}
    asked |= {"compile": session.selection.compile, "contenders": session.selection.only, "use": session.rules}
    return {
        "version": results.VERSION,
        "date": datetime.date.today().isoformat(),
        "timer": "graph" if gpu else "wall",
        "machine": machine.facts(session.folder),
        "clocks": {"before": machine.clocks()} if gpu else {},
        "options": asked,
        "peers": {},
        "streams": [],
        "peaks": [],
        "results": [],
        "seconds": 0.0,
        "stopped": True,
    }


def _prepare(
    session: Session,
    run: runner.Run,
    wanted: list[tuple[Op, Case]],
    found: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """Load peers, compile in children, measure the memory's rates and, where it matters, the products' peaks."""
    failed = peers.probe(session.folder)
    workers = min(session.workers or max(1, (os.cpu_count() or 2) - 1), 16)
    shares = warm.spread(wanted, workers)
    setup = warm.setup_of(session.folder, failed, session.selection, session.shapes, session.rules)
    limit = max(60.0, 2.0 * sum(warm.seconds_of(op) for op, _ in wanted) / workers)
    if session.minutes:
        limit = min(limit, COMPILING * 60 * session.minutes)
    with ThreadPoolExecutor(1) as beside:
        warming = beside.submit(warm.warm, shares, setup, limit, tell)
        found["peers"] = peers.load(session.folder, failed)
        run.problems = warming.result()
    if "child" in run.problems:
        tell(f"a compiling child {run.problems['child']}")
    configure_compiler()
    with torch.inference_mode():
        streams = limits.Streams(run.device, run.cache)
        found["streams"] = limits.measure_streams(streams, run.flush, 0.1)
        del streams
        if any(case.dots for _, case in wanted):
            found["peaks"] = limits.measure_peaks(run.device, run.flush, 0.3)
    torch.cuda.empty_cache()


def _rates(found: dict[str, Any]) -> str:
    rates = [f"{s['mix']} {s['gbps']:.0f} GB/s" for s in found["streams"]]
    return ", ".join(rates + [f"{p['dots']} {p['tflops']:.0f} TFLOP/s" for p in found["peaks"]])
