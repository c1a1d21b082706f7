"""`verify` of one provider in a child process per family: a vendor library can abort the process it runs in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch

from aiter_ops.core import runtime
from aiter_ops.core.op import Op, get_op

from .trial import Row, verify_one

_MARK = "\x1eaiter-ops row "
"""Starts the lines that are rows; whatever else a library prints is passed over."""


def verify_in_children(ops: list[Op], provider: str, device: torch.device, size: str, seed: int) -> Iterator[Row]:
    """The rows of `ops`; after a crash the rest of the family goes on in a new child."""
    for _, group in groupby(sorted(ops, key=lambda o: o.family), key=lambda o: o.family):
        left = list(group)
        while left:
            for row in _child(left, provider, device, size, seed):
                left.pop(0)
                yield row


def _child(ops: list[Op], provider: str, device: torch.device, size: str, seed: int) -> Iterator[Row]:
    """Rows of one child, in the order of `ops`; ends with a row ``crashed`` for the op that ended the process."""
    request = {
        "ops": [o.name for o in ops],
        "provider": provider,
        "device": str(device),
        "size": size,
        "seed": seed,
        "rules": [text for _, text in runtime.state.used],
    }
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "aiter_ops.check.child", json.dumps(request)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    done = 0
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(_MARK):
                done += 1
                yield Row(**json.loads(line[len(_MARK) :]))
        code = process.wait()
        if done < len(ops):
            op = ops[done]
            yield Row(op.name, op.family, provider, str(device), "crashed", detail=f"the process ended: {_how(code)}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _main() -> None:
    request = json.loads(sys.argv[1])
    device, size = torch.device(request["device"]), None if request["size"] == "all" else request["size"]
    with contextlib.ExitStack() as rules:
        for text in request["rules"]:
            rules.enter_context(runtime.use(text))
        for name in request["ops"]:
            row = verify_one(get_op(name), request["provider"], device, size, request["seed"])
            print(_MARK + json.dumps(row.as_dict()), flush=True)


if __name__ == "__main__":
    _main()
