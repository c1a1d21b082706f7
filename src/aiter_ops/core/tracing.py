"""What ran and what was passed over: counters, one warning per provider and reason, recordings, the trace file."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

log = logging.getLogger("aiter_ops")


class Call(NamedTuple):
    """Calls of one op by one provider with the same tensor shapes and dtypes."""

    op: str
    provider: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    count: int  # type: ignore[assignment]  # a tuple's own method is of no use here


class Recorder(list[Call]):
    """A list of `Call`, filled when the recording ends; `calls` gives the state so far."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[tuple[Any, ...]] = Counter()
        self._lock = threading.Lock()

    def add(self, op: str, provider: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        shapes = tuple(tuple(t.shape) for t in tensors)
        dtypes = tuple(str(t.dtype).removeprefix("torch.") for t in tensors)
        with self._lock:
            self._counts[op, provider, shapes, dtypes] += 1

    def calls(self) -> list[Call]:
        with self._lock:
            return [Call(key[0], key[1], key[2], key[3], count) for key, count in self._counts.items()]

    def close(self) -> None:
        self[:] = self.calls()


recorders: list[Recorder] = []
passed_over: Counter[tuple[str, str, str]] = Counter()
"""(op, provider, reason) -> how often a requested provider was passed over."""

_warned: set[tuple[str, str]] = set()
_lock = threading.Lock()


def hook_for(op: str, provider: str) -> Callable[..., None]:
    """What a recorded slot calls before the implementation."""

    def hook(*args: Any, **kwargs: Any) -> None:
        for recorder in recorders:
            recorder.add(op, provider, args, kwargs)

    return hook


def note_passed_over(op: str, provider: str, reason: str, ops: Callable[[], list[str]]) -> None:
    """Count a requested provider that was not used; the first time for a provider and reason, warn with the ops."""
    with _lock:
        passed_over[op, provider, reason] += 1
        first = (provider, reason) not in _warned
        _warned.add((provider, reason))
    if first:
        log.warning("%s was requested and is not used for %s: %s", provider, ", ".join(ops() or [op]), reason)


def warn_once(key: str, message: str, *args: object) -> None:
    """Log a warning, the first time for its key."""
    with _lock:
        first = (key, "") not in _warned
        _warned.add((key, ""))
    if first:
        log.warning(message, *args)


# torch.compile calls it while tracing
warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forget_warnings() -> None:
    """Start over: settings were read anew."""
    with _lock:
        _warned.clear()
        passed_over.clear()


@contextlib.contextmanager
def recording(rebuild: Callable[[], None]) -> Iterator[Recorder]:
    """Count every call of an op, eager or through the opaque op; `rebuild` makes the slots anew at both ends."""
    recorder = Recorder()
    recorders.append(recorder)
    rebuild()
    try:
        yield recorder
    finally:
        recorders.remove(recorder)
        recorder.close()
        rebuild()


def start_trace(target: str) -> Recorder:
    """The trace of AITER_OPS_TRACE: a summary at exit, or JSON lines in ``<target>.<pid>`` (shapes, never values)."""
    recorder = Recorder()
    recorders.append(recorder)
    owner = os.getpid()

    def finish() -> None:
        if os.getpid() != owner:
            return
        rows = sorted(recorder.calls(), key=lambda c: (-c.count, c.op, c.provider))
        if target == "1":
            print(summary(rows), file=sys.stderr)
            return
        handle = os.open(f"{target}.{owner}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row._asdict()) + "\n")

    atexit.register(finish)
    return recorder


def summary(rows: list[Call]) -> str:
    """One line per op and provider, most calls first."""
    totals: Counter[tuple[str, str]] = Counter()
    for row in rows:
        totals[row.op, row.provider] += row.count
    lines = [f"aiter_ops: {count:>8} x {op} on {provider}" for (op, provider), count in totals.most_common()]
    return "\n".join(lines or ["aiter_ops: no op was called"])
