"""Compilation ahead of timing: children side by side call every contender once, which fills the compilers' caches.

They are also the canaries: a contender that fails, or kills its child, is named with the reason and not called again.
``python -m aiter_ops.bench.warm FILE`` is such a child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .contenders import EAGER, Selection, configure_compiler, contenders, key
from .inputs import argument_sets

Job = tuple[str, int, int]
"""op, rows, width; or ``streams``, 0, 0"""


def spread(jobs: Iterable[Job], workers: int) -> list[list[Job]]:
    """Jobs over workers; the shapes of one op and width stay together, since they share kernels."""
    groups: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job[0], job[2]), []).append(job)
    shares: list[list[Job]] = [[] for _ in range(max(1, min(workers, len(groups))))]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    return shares


class Child:
    """One child with its list of jobs; restarted without the contender that killed it, as long as jobs are left."""

    def __init__(self, jobs: list[Job], setup: dict[str, Any], folder: Path, index: int) -> None:
        self.jobs, self.setup, self.problems = jobs, setup, dict[str, str]()
        self.task, self.log = folder / f"{index}.json", folder / f"{index}.log"
        self.errors = folder / f"{index}.err"
        self.start()

    def start(self) -> None:
        setup = {**self.setup, "jobs": self.jobs, "problems": self.problems}
        self.task.write_text(json.dumps(setup), encoding="utf-8")
        root = str(Path(__file__).parents[2])
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("w") as out, self.errors.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aiter_ops.bench.warm", str(self.task)], stdout=out, stderr=err, env=env
            )

    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        code = self.process.poll()
        if code is None:
            return False
        begun, done, failed = read_log(self.log.read_text(encoding="utf-8"))
        self.problems.update(failed)
        if code == 0:
            return True
        if begun is None:
            last = (self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"])[-1]
            self.problems["child"] = f"ended with code {code}: {last}"
            return True
        op, _, name = begun.split(" ", 2)
        how = f"killed its process (signal {-code})" if code < 0 else failed.pop(begun, f"ended its process ({code})")
        self.problems.pop(begun, None)
        self.problems[f"{op} {name}"] = how
        self.jobs = [j for j in self.jobs if f"{j[0]} {j[1]}x{j[2]}" not in done]
        self.start()
        return False


def read_log(text: str) -> tuple[str | None, set[str], dict[str, str]]:
    """What a child was doing when it ended, the jobs it finished, and what failed with the reason."""
    begun, done, failed = None, set[str](), dict[str, str]()
    for line in text.splitlines():
        word, _, rest = line.partition("\t")
        if word == "begin":
            begun = rest
        elif word == "end":
            begun = None
        elif word == "fail":
            name, _, reason = rest.partition("\t")
            failed[name] = reason
        elif word == "done":
            done.add(rest)
    return begun, done, failed


def warm(
    jobs: list[Job], setup: dict[str, Any], workers: int, seconds: float, tell: Callable[[str], None]
) -> dict[str, str]:
    """Run all jobs in children, for `seconds` at most; returns problems as `contenders` takes them."""
    problems: dict[str, str] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        running = [Child(share, setup, Path(folder), i) for i, share in enumerate(spread(jobs, workers)) if share]
        count = len(running)
        while running:
            time.sleep(0.2)
            for child in [c for c in running if c.finished()]:
                running.remove(child)
                problems.update(child.problems)
                tell(f"compiling: {count - len(running)} of {count} children done, {time.monotonic() - started:.0f} s")
            if running and time.monotonic() - started > seconds:
                tell(f"compiling: stopped after {seconds:.0f} s; the rest is compiled while timing")
                for child in running:
                    child.process.kill()
                    child.process.wait()
                    problems.update(read_log(child.log.read_text(encoding="utf-8"))[2])
                break
    return problems


def setup_of(folder: Path | None, failed: dict[str, str], selection: Selection, rules: str) -> dict[str, Any]:
    return {
        "peers": str(folder) if folder else None,
        "failed": failed,
        "selection": asdict(selection),
        "rules": rules,
    }


def _say(word: str, *rest: str) -> None:
    print(word, *rest, sep="\t", flush=True)


def _call_all(job: Job, selection: Selection, problems: dict[str, str]) -> None:
    from aiter_ops.core.op import get_op

    op, (_, rows, width) = get_op(job[0]), job
    kwargs = argument_sets(op, rows, width, torch.device("cuda"), 1)[0]
    for contender in contenders(op, kwargs, rows, width, selection, problems)[0]:
        if contender.name in (EAGER, "torch.fused"):
            continue  # nothing to compile
        at = key(op.name, rows, width, contender.name)
        _say("begin", at)
        try:
            contender.make(kwargs)()
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        except Exception as error:
            _say("fail", at, (str(error).strip().splitlines() or [type(error).__name__])[0])
            torch.cuda.synchronize()  # a broken context raises again and ends this child
        _say("end", at)


def _call_yardsticks() -> None:
    from .inputs import WIDTHS
    from .limits import STREAMS, Streams, floor_calls, variants

    device = torch.device("cuda")
    streams = Streams(device, 1 << 20)
    for mix in STREAMS:
        for variant in variants(mix):
            streams.calls(*variant)[0]()
    for width in {w * k for w in WIDTHS for k in (1, 2)}:
        for dtype in (torch.bfloat16, torch.int8):
            for calls in floor_calls([torch.zeros(1, width, dtype=dtype, device=device)]).values():
                calls[0]()
    torch.cuda.synchronize()


def main(path: str) -> None:
    import aiter_ops

    from . import peers

    setup = json.loads(Path(path).read_text(encoding="utf-8"))
    configure_compiler()
    peers.load(Path(setup["peers"]) if setup["peers"] else None, setup["failed"])
    selection = Selection(tuple(setup["selection"]["only"]), setup["selection"]["compile"])
    with aiter_ops.use(setup["rules"]), torch.inference_mode():
        for name, rows, width in setup["jobs"]:
            if name == "streams":
                _call_yardsticks()
            else:
                _call_all((name, rows, width), selection, setup["problems"])
            torch.cuda.empty_cache()
            _say("done", f"{name} {rows}x{width}")


if __name__ == "__main__":
    main(sys.argv[1])
