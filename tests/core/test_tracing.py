"""The trace of AITER_OPS_TRACE: current while the process runs, whole after it was killed, one file for each process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aiter_ops.core import tracing

PRELUDE = """
import multiprocessing, os, signal, sys, threading, time
import torch
import aiter_ops
from aiter_ops.core import tracing
tracing.INTERVAL = 0.02
def call(rows=2, times=1):
    for _ in range(times):
        aiter_ops.rms_norm(torch.ones(rows, 8), None, 1e-6)
def written(pid=os.getpid()):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if open(f"{sys.argv[1]}.{pid}").read():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.005)
    raise SystemExit("nothing was written")
"""


def run(body: str, target: Path | str, ends: int = 0) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "AITER_OPS_TRACE": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + body, str(target)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == ends, done.stderr
    return done


def calls(folder: Path) -> list[dict[tuple[int, ...], int]]:
    """Of each process: rows -> how often."""
    files = sorted(folder.iterdir())
    assert all(f.name.startswith("trace.") for f in files), "something else was left"
    rows = [[json.loads(line) for line in f.read_text().splitlines()] for f in files]
    return [{r["shapes"][0][0]: r["count"] for r in found} for found in rows]


def test_a_killed_process_has_written_what_it_ran(tmp_path: Path) -> None:
    run("call(2, 5); written(); os.kill(os.getpid(), signal.SIGKILL)", tmp_path / "trace", -signal.SIGKILL)
    assert calls(tmp_path) == [{2: 5}]


FORKS = """
call(1, 2); written()
def work():
    call(4, 3)
context = multiprocessing.get_context("fork")
child = context.Process(target=work)
child.start(); child.join()
assert child.exitcode == 0
if (pid := os.fork()) == 0:  # ends without any function at exit
    call(5); written(os.getpid()); os._exit(0)
os.waitpid(pid, 0)
idle = context.Process(target=int)
idle.start(); idle.join()
call(1)
"""


def test_forked_processes_have_files_of_their_own(tmp_path: Path) -> None:
    """With their calls alone, whether they end in order or not; one that calls no op has none."""
    run(FORKS, tmp_path / "trace")
    assert sorted(calls(tmp_path), key=str) == [{1: 3}, {4: 3}, {5: 1}]


def test_a_summary_of_forked_processes(tmp_path: Path) -> None:
    done = run(FORKS.replace("written(os.getpid());", "").replace("written()", ""), "1")
    assert done.stderr.splitlines() == [f"aiter_ops:        {n} x rms_norm on torch" for n in (3, 3)]


def test_forks_while_it_is_written(tmp_path: Path) -> None:
    """Threads call ops and the file is written all the time; no fork may stand still or spoil the parent's file."""
    body = """
tracing.INTERVAL, tracing.SHARE = 0, 1
stop = threading.Event()
# torch itself stands still in a process forked while a thread calls one of its kernels for the first time
aiter_ops.get_op("rms_norm").reference(torch.ones(2, 8), None, 1e-6)
def keep():
    rows = 0
    while not stop.is_set():
        call(rows := rows % 50 + 1)
threads = [threading.Thread(target=keep) for _ in range(2)]
[t.start() for t in threads]
for i in range(30):
    if (pid := os.fork()) == 0:
        signal.alarm(20)
        call(100 + i)
        aiter_ops.core.runtime.state.trace.finish()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
[t.join() for t in threads]
"""
    run(body, tmp_path / "trace")
    found = calls(tmp_path)
    (parent,) = [c for c in found if 1 in c]
    assert set(parent) <= set(range(1, 51))
    assert sorted(c.popitem() for c in found if c is not parent) == [(100 + i, 1) for i in range(30)]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    trace, path = tracing.Trace(str(tmp_path / "trace")), tmp_path / f"trace.{os.getpid()}"
    end = threading.Event()

    def call() -> None:
        while not end.is_set():
            for rows in range(300):
                trace.add("rms_norm", "torch", (torch.empty(rows, 8),), {})

    def write() -> None:
        while not end.is_set():
            trace._write_what_is_new()

    threads = [threading.Thread(target=work) for work in (call, write)]
    for thread in threads:
        thread.start()
    seen = 0
    stop = time.monotonic() + 1
    while time.monotonic() < stop:
        text = path.read_text()
        assert not text or text.endswith("}\n")
        seen = max(seen, len([json.loads(line) for line in text.splitlines()]))
    end.set()
    for thread in threads:
        thread.join()
    trace.finish()
    assert seen == 300
    assert [f.name for f in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_large_file_is_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, pauses = tracing.Trace(str(tmp_path / "trace")), []

    class End:
        def wait(self, pause: float) -> bool:
            pauses.append(pause)
            return len(pauses) == 3

    def slow() -> None:
        time.sleep(0.05)

    monkeypatch.setattr(trace, "_end", End())
    monkeypatch.setattr(trace, "_write_what_is_new", slow)
    trace._keep()
    assert pauses[0] == tracing.INTERVAL
    assert min(pauses[1:]) >= 0.05 / tracing.SHARE


def test_where_nothing_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "gone" / "trace"
    done = run("call()", target, 1)
    assert f"SettingsError: AITER_OPS_TRACE='{target}' cannot be written:" in done.stderr.splitlines()[-1]
    # a folder that goes while the process runs: one warning, and what is new stays so
    target.parent.mkdir()
    trace = tracing.Trace(str(target))
    trace.add("rms_norm", "torch", (torch.empty(2, 8),), {})
    (target.parent / f"trace.{os.getpid()}").unlink()
    target.parent.rmdir()
    tracing.forget_warnings()
    for _ in range(2):
        trace._write_what_is_new()
    (told,) = [r.getMessage() for r in caplog.records]
    assert told.startswith(f"AITER_OPS_TRACE={target} cannot be written")
    target.parent.mkdir()
    trace.finish()
    assert json.loads((target.parent / f"trace.{os.getpid()}").read_text())["count"] == 1


def test_without_a_trace_nothing_is_started(environment: Any) -> None:
    before = set(threading.enumerate())
    import aiter_ops

    aiter_ops.reload_settings()
    aiter_ops.rms_norm(torch.ones(2, 8), None, 1e-6)
    assert not tracing.recorders
    assert set(threading.enumerate()) <= before
