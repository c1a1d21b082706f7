"""What ran and what was passed over: counters, one warning per provider and reason, recordings, the trace file."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import multiprocessing.util
import os
import sys
import tempfile
import threading
import time
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
        self._new = False

    def add(self, op: str, provider: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        shapes = tuple(tuple(t.shape) for t in tensors)
        dtypes = tuple(str(t.dtype).removeprefix("torch.") for t in tensors)
        with self._lock:
            self._counts[op, provider, shapes, dtypes] += 1
            self._new = True

    def calls(self) -> list[Call]:
        with self._lock:
            counts = self._counts.copy()
        return [Call(key[0], key[1], key[2], key[3], count) for key, count in counts.items()]

    def start_over(self) -> None:
        """In a process just forked."""
        self._lock = threading.Lock()

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


INTERVAL = 1.0
"""Seconds between two writes of the trace file, while ops are called."""

SHARE = 0.02
"""Of the time at most goes into writing: a file that has grown large is written less often."""

_writing = threading.RLock()
"""Held while a file is written, and by a fork: no process starts with half of one in its buffers."""


class Trace(Recorder):
    """What AITER_OPS_TRACE asks for: a summary at the end of the process, or a file that is kept current.

    target: ``1`` for the summary on stderr, else a path: this process's file is ``<target>.<pid>``, JSON lines of
    shapes and never values. A thread replaces it as a whole, so it is there after the process was killed, and never
    half written. A forked process starts from nothing, with a file of its own once it calls an op.
    Raises OSError where the file cannot be written.
    """

    def __init__(self, target: str) -> None:
        super().__init__()
        self.path = "" if target == "1" else os.path.abspath(target)
        self._forked, self._end = False, threading.Event()
        self._thread: threading.Thread | None = None
        if self.path:
            self._write()
        atexit.register(self.finish)
        # a process of multiprocessing ends without atexit's functions
        multiprocessing.util.register_after_fork(self, Trace._at_end)

    def _at_end(self) -> None:
        multiprocessing.util.Finalize(None, self.finish, exitpriority=0)

    def start_over(self) -> None:
        """In a process just forked: the calls and the thread are the parent's."""
        super().start_over()
        self._counts.clear()
        self._new, self._forked, self._thread, self._end = False, True, None, threading.Event()

    def add(self, op: str, provider: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().add(op, provider, args, kwargs)
        if self._thread is None and self.path:
            self._start()

    def _start(self) -> None:
        with _lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="aiter_ops trace", daemon=True)
                with contextlib.suppress(RuntimeError):  # the interpreter is ending, and starts no thread any more
                    self._thread.start()

    def _keep(self) -> None:
        pause = INTERVAL
        while not self._end.wait(pause):
            start = time.perf_counter()
            self._write_what_is_new()
            pause = max(INTERVAL, (time.perf_counter() - start) / SHARE)

    def finish(self) -> None:
        """The process ends: stop the thread, write what is new or print the summary."""
        if self._end.is_set():
            return
        self._end.set()
        if self.path:
            self._write_what_is_new()
        elif self._counts or not self._forked:
            print(summary(self._rows()), file=sys.stderr)

    def _rows(self) -> list[Call]:
        return sorted(self.calls(), key=lambda c: (-c.count, c.op, c.provider))

    def _write_what_is_new(self) -> None:
        try:
            with _writing:
                if self._new:
                    self._write()
        except OSError as error:
            self._new = True
            warn_once(f"trace {self.path}", "AITER_OPS_TRACE=%s cannot be written: %s", self.path, error)

    def _write(self) -> None:
        self._new = False  # before the calls are read: one that comes in between is written again
        text = "".join(json.dumps(row._asdict()) + "\n" for row in self._rows())
        folder, name = os.path.split(f"{self.path}.{os.getpid()}")
        handle, part = tempfile.mkstemp(prefix=f".{name}.", dir=folder)  # readable by its owner alone
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, os.path.join(folder, name))
        except OSError:
            os.unlink(part)
            raise


def start_trace(target: str) -> Trace:
    """Count every call from now on for the trace of AITER_OPS_TRACE. OSError where its file cannot be written."""
    trace = Trace(target)
    recorders.append(trace)
    return trace


def _after_fork() -> None:
    """Locks may have been held by threads that a new process does not have."""
    global _lock, _writing
    _lock, _writing = threading.Lock(), threading.RLock()
    for recorder in recorders:
        recorder.start_over()


os.register_at_fork(
    before=lambda: _writing.acquire(), after_in_parent=lambda: _writing.release(), after_in_child=_after_fork
)


def summary(rows: list[Call]) -> str:
    """One line per op and provider, most calls first."""
    totals: Counter[tuple[str, str]] = Counter()
    for row in rows:
        totals[row.op, row.provider] += row.count
    lines = [f"aiter_ops: {count:>8} x {op} on {provider}" for (op, provider), count in totals.most_common()]
    return "\n".join(lines or ["aiter_ops: no op was called"])
