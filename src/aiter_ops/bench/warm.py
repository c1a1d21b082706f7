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

from aiter_ops.core.op import Op
from aiter_ops.core.provider import provider_names

from .cases import Case, Shapes, find
from .contenders import COMPILED, Selection, configure_compiler, contenders, key
from .inputs import argument_sets, is_large
from .limits import STREAMS, Streams, floor_calls, variants

Job = tuple[str, str]
"""op and case name; or one of `STREAM_JOBS`"""

SECONDS = {"gemm": 12.0, "fused_moe": 25.0, "attention": 8.0, "mla": 15.0, "sampling": 4.0, "merge_attn_states": 1.0}
"""What a job of this family or op is reckoned at; any other at one second."""


def seconds_of(op: Op) -> float:
    return SECONDS.get(op.name, SECONDS.get(op.family, 1.0))


def spread(wanted: Iterable[tuple[Op, Case]], workers: int) -> list[list[Job]]:
    """Jobs over workers, the longest first; cases of an op that share kernels stay together."""
    groups: dict[tuple[Op, str], list[Job]] = {}
    for op, case in wanted:
        groups.setdefault((op, case.alike or case.name), []).append((op.name, case.name))
    costs = [(seconds_of(op) * len(jobs), jobs) for (op, _), jobs in groups.items()]
    costs += [(1.0, [job]) for job in STREAM_JOBS]
    shares: list[list[Job]] = [[] for _ in range(max(1, min(workers, len(costs))))]
    loads = [0.0] * len(shares)
    for cost, jobs in sorted(costs, key=lambda pair: -pair[0]):
        lightest = loads.index(min(loads))
        shares[lightest].extend(jobs)
        loads[lightest] += cost
    return shares


class Child:
    """One child with its list of jobs; restarted without the contender that killed it, as long as jobs are left.

    What kills it at one case may serve another, so a contender is given up altogether the second time.
    """

    def __init__(self, jobs: list[Job], setup: dict[str, Any], folder: Path, index: int) -> None:
        self.jobs, self.setup, self.problems = jobs, setup, dict[str, str]()
        self.killers = set[tuple[str, str]]()
        self.task, self.log = folder / f"{index}.json", folder / f"{index}.log"
        self.errors = folder / f"{index}.err"
        self.start()

    def start(self) -> None:
        setup = {**self.setup, "jobs": self.jobs, "problems": self.problems}
        self.task.write_text(json.dumps(setup), encoding="utf-8")
        root = str(Path(__file__).parents[2])
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("w", encoding="utf-8") as out, self.errors.open("w", encoding="utf-8") as err:
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
        op, _, name = begun.split("|")
        how = f"killed its process (signal {-code})" if code < 0 else failed.pop(begun, f"ended its process ({code})")
        self.problems.pop(begun, None)
        self.problems[key(op, "", name) if (op, name) in self.killers else begun] = how
        self.killers.add((op, name))
        self.jobs = [job for job in self.jobs if "|".join(job) not in done]
        self.start()
        return False

    def stopped(self, seconds: float) -> dict[str, str]:
        """End it; its problems, and as one more what it was at: nobody knows how long that would still take."""
        self.process.kill()
        self.process.wait()
        begun, _, failed = read_log(self.log.read_text(encoding="utf-8"))
        self.problems.update(failed)
        if begun is not None and begun.rpartition("|")[2] not in provider_names():
            self.problems[begun] = f"not compiled within {seconds:.0f} s"
        return self.problems


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


def warm(shares: list[list[Job]], setup: dict[str, Any], seconds: float, tell: Callable[[str], None]) -> dict[str, str]:
    """Run each share in a child, for `seconds` at most; returns problems as `contenders` takes them."""
    problems: dict[str, str] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        running = [Child(share, setup, Path(folder), i) for i, share in enumerate(shares) if share]
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
                    problems.update(child.stopped(seconds))
                break
    return problems


def setup_of(
    folder: Path | None, failed: dict[str, str], selection: Selection, shapes: Shapes, rules: str
) -> dict[str, Any]:
    return {
        "peers": str(folder) if folder else None,
        "failed": failed,
        "selection": asdict(selection),
        "shapes": asdict(shapes),
        "rules": rules,
    }


def _say(word: str, *rest: str) -> None:
    print(word, *rest, sep="\t", flush=True)


def _call_all(op: Op, case: Case, selection: Selection, problems: dict[str, str]) -> None:
    kwargs = argument_sets(op, case, torch.device("cuda"), 1, thin=True)[0]
    large = is_large(op, case, kwargs)
    if case.floor is not None and not large:
        for calls in floor_calls([kwargs[case.floor]]).values():
            calls[0]()
    for contender in contenders(op, kwargs, case, large, selection, problems)[0]:
        if contender.kind == "torch" and contender.name != COMPILED:
            continue  # nothing to compile
        at = key(op.name, case.name, contender.name)
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


STREAM_JOBS: list[Job] = [("streams", mix) for mix in STREAMS]
"""The streaming kernels as jobs, those of one mix each."""


def _call_streams(mix: str) -> None:
    streams = Streams(torch.device("cuda"), 1 << 20)
    for variant in variants(mix):
        streams.calls(*variant)[0]()
    torch.cuda.synchronize()


def main(path: str) -> None:
    import aiter_ops
    from aiter_ops.core.op import get_op

    from . import peers

    setup = json.loads(Path(path).read_text(encoding="utf-8"))
    configure_compiler()
    peers.load(Path(setup["peers"]) if setup["peers"] else None, setup["failed"])
    selection = Selection(tuple(setup["selection"]["only"]), setup["selection"]["compile"])
    shapes = Shapes(**{n: tuple(v) if isinstance(v, list) else v for n, v in setup["shapes"].items()})
    with aiter_ops.use(setup["rules"]), torch.inference_mode():
        for name, case in setup["jobs"]:
            if (name, case) in STREAM_JOBS:
                _call_streams(case)
            else:
                _call_all(get_op(name), find(get_op(name), case, shapes), selection, setup["problems"])
            torch.cuda.empty_cache()
            _say("done", f"{name}|{case}")


if __name__ == "__main__":
    main(sys.argv[1])
