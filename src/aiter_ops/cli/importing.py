"""`doctor --import`: a provider's library is imported in a child process, which it may end, for a limited time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT = 120.0
"""Seconds; where nothing is compiled yet, an import can take longer."""


def tried(module: str, limit: float = LIMIT) -> dict[str, Any]:
    """Run `module`, which prints a JSON object as its last line; `error` in the result says why there is none."""
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed(f"its import did not end in {limit:.0f} s; it may be compiling")
    if done.returncode:
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        said = (done.stderr.strip().splitlines() or [""])[-1]
        return _failed(f"its import ends the process: {how}{': ' + said if said else ''}")
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return _failed("its import leaves no answer")
    return found if isinstance(found, dict) else _failed("its import leaves no answer")


def _failed(error: str) -> dict[str, Any]:
    return {"error": error, "found": True, "names": 0, "seconds": None, "entries": {}}
