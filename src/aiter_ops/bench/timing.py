"""Clocks: graph replay on a GPU with cold inputs, interleaved rounds; wall time on a CPU; host time of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]

MAX_CALLS = 96
"""Calls in one graph at most; a short kernel is called this often so that starting the graph does not count."""

GRAPH_US = 1000.0
"""A graph is filled with calls up to about this time."""

MIN_REPLAYS, MAX_REPLAYS = 20, 60

SLOW_US = 5e4
"""A contender whose calls take this long is timed once: it is orders of magnitude behind, and GPU time is dear."""


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median, 10th and 90th percentile over `replays` replays of `calls` calls each.

    eager: called from Python, not replayed from a graph; what the host needs between kernels is in it.
    """

    us: float
    p10: float
    p90: float
    replays: int
    calls: int
    eager: bool = False


def summarise(samples: Sequence[float], calls: int, eager: bool = False) -> Timing:
    """Times of whole replays, in microseconds, to the time of one call."""
    each = sorted(s / calls for s in samples)
    low, high = (each[round(q * (len(each) - 1))] for q in (0.1, 0.9))
    return Timing(statistics.median(each), low, high, len(each), calls, eager)


def sets_needed(set_bytes: int, cache: int) -> int:
    """How many input sets together pass four times the cache, and one more; at most a graph's calls."""
    return min(MAX_CALLS, -(-4 * cache // max(set_bytes, 1)) + 1)


class Flush:
    """Reads four times the last-level cache: whatever was there before is out, and nothing waits to be written."""

    def __init__(self, cache: int, device: torch.device) -> None:
        self.buffer = torch.ones(4 * cache // 4, dtype=torch.float32, device=device)
        self.result = torch.empty((), dtype=torch.float32, device=device)

    def __call__(self) -> None:
        torch.sum(self.buffer, dim=0, out=self.result)


class Capture:
    """The stream graphs are captured on and the memory they share: each may overwrite the others' results."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()


class Timed:
    """Calls one after the other between two events; a sample is the time of all of them."""

    eager = True

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = len(calls)
        self.samples: list[float] = []
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._calls = calls

    def start(self) -> None:
        for call in self._calls:
            call()

    def enqueue(self, flush: Call) -> None:
        flush()
        self.events[0].record()
        self.start()
        self.events[1].record()

    def collect(self) -> None:
        self.samples.append(self.events[0].elapsed_time(self.events[1]) * 1e3)


class Graph(Timed):
    """Calls captured one after the other; all results of one graph lie apart."""

    eager = False

    def __init__(self, calls: Sequence[Call], capture: Capture) -> None:
        super().__init__(calls)
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        kept = []
        with torch.cuda.stream(capture.stream):
            self.graph.capture_begin(pool=capture.pool, capture_error_mode="thread_local")
            try:
                for call in calls:
                    kept.append(call())
            finally:
                self.graph.capture_end()
        torch.cuda.synchronize()

    def start(self) -> None:
        self.graph.replay()


def rough_us(call: Call, flush: Call) -> float:
    """A first estimate of one call, to choose how many go into a graph: the best of three after one to warm up."""
    call()
    best = float("inf")
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush()
        start.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e3)
        if best > SLOW_US:
            break
    return best


def fill(calls: Sequence[Call], us: float) -> list[Call]:
    """All sets, as many times over as fit a graph; a slow call gets at least one set, or two where they fit twice."""
    whole = max(1, int(min(MAX_CALLS, GRAPH_US / max(us, 0.1)) // len(calls)))
    if us * len(calls) <= 10 * GRAPH_US:
        return list(calls) * whole
    return list(calls[: max(1, int(10 * GRAPH_US / us))])


def run_rounds(graphs: Mapping[str, Timed], flush: Call, seconds: float) -> dict[str, Timing]:
    """Starts all of them in turn, round after round, for `seconds`; at least 20 rounds, fewer for slow contenders.

    A contender whose 20 replays would take more than its share of twice the time sits rounds out, five at least stay; of
    a slow one (`SLOW_US`) the first start is all there is.
    """
    for graph in graphs.values():
        graph.enqueue(flush)
    torch.cuda.synchronize()
    for graph in graphs.values():
        graph.collect()
    share = 2e6 * seconds / max(len(graphs), 1)
    wanted = {n: max(5, min(MAX_REPLAYS, int(share / max(g.samples[0], 1.0)))) for n, g in graphs.items()}
    for name, graph in graphs.items():
        if graph.samples[0] / graph.calls > SLOW_US:
            wanted[name] = 0
        else:
            graph.samples.clear()
    started = time.perf_counter()
    for turn in range(MAX_REPLAYS):
        if turn >= MIN_REPLAYS and time.perf_counter() - started > seconds:
            break
        due = [g for n, g in graphs.items() if turn < wanted[n]]
        for graph in due:
            graph.enqueue(flush)
        torch.cuda.synchronize()
        for graph in due:
            graph.collect()
    return {name: summarise(g.samples, g.calls, g.eager) for name, g in graphs.items()}


def host_us(call: Call, batches: int = 7, size: int = 50) -> float:
    """CPU microseconds of one eager call, the GPU not waited for: median over batches."""
    for _ in range(10):
        call()
    each = []
    for _ in range(batches):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(size):
            call()
        each.append((time.perf_counter() - start) * 1e6 / size)
    torch.cuda.synchronize()
    return statistics.median(each)


def wall(call: Call, seconds: float) -> Timing:
    """Wall time of a call on a CPU, inputs as warm as repetition leaves them: at least 3 calls, for `seconds`."""
    call()
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < 3 or (time.perf_counter() - started < seconds and len(samples) < 1000):
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e6)
    return summarise(samples, 1)
