"""Many ops at once, each in children of its own with a limit of time; a child that dies is replaced for what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .trial import ENDS_CONTEXT, MARK, Request, Result

TOOLS = Path(__file__).resolve().parents[1]

DEATHS = 4
"""Children that may die of one request before the rest of its samples is given up."""

Command = Callable[[Request], list[str]]


@dataclass
class Found:
    """What came of one op. out: why no sample was tried, or not all."""

    op: str
    results: list[Result] = field(default_factory=list)
    out: list[str] = field(default_factory=list)


def command(request: Request) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.trial", json.dumps(_plain(request))]


def _plain(request: Request) -> dict[str, Any]:
    return {**vars(request), "source": list(request.source)}


def environment(interpret: bool) -> dict[str, str]:
    paths = [str(TOOLS), str(TOOLS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {**given, "TRITON_INTERPRET": "1"} if interpret else given


class _Child:
    """One process, its lines read as they come, killed at `until`."""

    def __init__(self, request: Request, until: float, command: Command) -> None:
        self.late = False
        self.process = subprocess.Popen(
            command(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(request.interpret),
            start_new_session=True,
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        self._timer = threading.Timer(max(until - time.monotonic(), 0.1), self._kill)
        self._timer.start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors = [*self.errors[-20:], line.strip()]

    def _kill(self) -> None:
        self.late = True
        self.process.kill()

    def said(self) -> Iterable[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                yield json.loads(line[len(MARK) :])

    def end(self) -> str:
        """How it ended, once it has; empty where it ended well."""
        code = self.process.wait()
        self._timer.cancel()
        self._reader.join(timeout=5)
        if self.late:
            return "the time was over"
        if code in (0, ENDS_CONTEXT):
            return ""
        last = next((line for line in reversed(self.errors) if line), "")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the process ended with {how}" + (f": {last[:200]}" if last else "")


def run_request(request: Request, until: float, command: Command = command) -> Found:
    """All samples of a request, up to the moment `until` (of `time.monotonic`)."""
    found, done, deaths = Found(request.op), request.done, 0
    while True:
        if time.monotonic() >= until:
            found.out.append("the time was over before all samples were tried")
            return found
        child, begun, at_end = _Child(replace(request, done=done), until, command), None, False
        for said in child.said():
            if "begun" in said:
                begun = said["begun"]
            elif "result" in said:
                found.results.append(Result(**said["result"]))
                done, begun = done + 1, None
            elif "out" in said:
                found.out.append(said["out"])
                at_end = True
        how = child.end()
        if (not how and child.process.returncode == 0) or at_end:
            return found
        deaths += 1
        if begun is not None:
            outcome = "timeout" if child.late else "crashed"
            found.results.append(Result(request.op, begun, outcome, how))
            done += 1
        elif how and not child.late:
            found.out.append(how)
            return found
        if deaths > DEATHS:
            found.out.append(f"{deaths} processes ended; the rest of its samples was not tried")
            return found


def run_all(
    requests: list[Request],
    jobs: int,
    limit: float,
    deadline: float,
    tell: Callable[[str], None],
    command: Command = command,
) -> dict[str, Found]:
    """What came of each op. limit: seconds for a request; deadline: seconds for all together."""
    end = time.monotonic() + deadline
    every = {request.op: Found(request.op) for request in requests}
    lock = threading.Lock()

    def one(request: Request) -> None:
        start = time.monotonic()
        found = run_request(request, min(start + limit, end), command)
        with lock:
            every[request.op].results += found.results
            every[request.op].out += [text for text in found.out if text not in every[request.op].out]
            right = sum(r.outcome == "right" for r in found.results)
            part = f" ({request.first + 1}/{request.step})" if request.step > 1 else ""
            told = f"; {found.out[0]}" if found.out else ""
            tell(f"{request.op}{part}: {right} of {len(found.results)} right, {time.monotonic() - start:.0f} s{told}")

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(one, request) for request in requests]:
            future.result()
    return every
