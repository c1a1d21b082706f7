"""One op's adapter against the real AITER, in a process of its own: a wrong kernel can end the GPU's context.

    python -m real_aiter.trial REQUEST

REQUEST is JSON, the fields of `Request`. Prints a line for every sample that is begun and one for what came of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from aiter_ops.check.trial import against
from aiter_ops.core.op import Op, get_op
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Implementation
from aiter_ops.core.samples import Sample
from aiter_ops.providers.aiter import KNOWN_BAD, probe
from aiter_ops.providers.aiter.call import BrokenAiter

from . import interpreter
from .entries import NotTritonError, Source, entries, install, runs

MARK = "\x1ereal aiter "
"""Starts the lines that are for the parent; whatever else a library prints is passed over."""

ENDS_CONTEXT = 3
"""The exit code where the GPU's context cannot be used further."""

Outcome = Literal["right", "wrong", "refused", "not triton", "empty", "left out", "failed", "crashed", "timeout"]
"""``refused``: the adapter's own predicate. ``not triton``: it chose another entry. ``empty``: no rows, which the layer
serves without AITER. ``left out``: not for this device. ``failed``: the call raised. The last two the parent says.
"""


@dataclass(frozen=True)
class Request:
    """Samples `first`, `first` + `step`, … of an op, without the `done` first of these. interpret: on the CPU."""

    op: str
    source: Source
    seed: int = 0
    first: int = 0
    step: int = 1
    done: int = 0
    interpret: bool = False


@dataclass
class Result:
    """What came of one sample. error, tolerance: at its worst coordinate. known_bad: the evidence that speaks of it."""

    op: str
    sample: str
    outcome: Outcome
    detail: str = ""
    error: float = 0.0
    tolerance: float = 0.0
    known_bad: str = ""


def results(request: Request) -> Iterator[str | Result]:
    """The name of each sample as it is begun, then its result."""
    op = get_op(request.op)
    if request.interpret:
        interpreter.prepare()
    here = install(op, request.source)
    implementation = op.implementations["aiter"]
    wanted = entries(op, request.source.release)
    if broken := [f"{s.name}: {s.state}" for s in probe.symbols(implementation.calls, here) if s.state]:
        mine = [text for text in broken if runs(wanted[text.split(":")[0]])]
        if mine:
            raise BrokenAiter("; ".join(mine))
    device = "cpu" if request.interpret else "cuda"
    samples = op.samples(device, request.seed, "small" if request.interpret else None)
    chosen = [s for i, s in enumerate(samples) if i % request.step == request.first][request.done :]
    for sample in chosen:
        yield sample.name
        yield tried(op, implementation, prepared(op, sample, here, request.interpret), here, request.interpret)


def prepared(op: Op, sample: Sample, here: Platform, interpret: bool) -> Sample:
    """The sample with every argument given; bf16 as fp16 where the interpreter computes."""
    args, kwargs = op.bind(sample.args, sample.kwargs, here)
    if interpret:
        args = tuple(map(interpreter.in_fp16, args))
        kwargs = {name: interpreter.in_fp16(value) for name, value in kwargs.items()}
    return Sample(sample.name, args, kwargs, sample.size)


def tried(op: Op, implementation: Implementation, sample: Sample, here: Platform, interpret: bool) -> Result:
    """One sample through the adapter, against the reference."""
    args, kwargs = sample.args, sample.kwargs
    result = Result(op.name, sample.name, "right")
    rows = [row for row in KNOWN_BAD if row.matches(op.name, "aiter", here) and row.covers(*args, **kwargs)]
    result.known_bad = "; ".join(map(str, rows))
    predicate = implementation.predicate(here) if implementation.predicate else None
    if predicate and (reason := predicate(*args, **kwargs)):
        result.outcome, result.detail = "refused", reason
    elif isinstance(args[0], torch.Tensor) and not args[0].numel():
        result.outcome = "empty"
    elif interpret and interpreter.too_large(*args, *kwargs.values()):
        result.outcome, result.detail = "left out", "too large for the interpreter"
    else:
        _compared(op, implementation, sample, result)
    return result


def _compared(op: Op, implementation: Implementation, sample: Sample, result: Result) -> None:
    try:
        verdict, broken = against(op, sample, implementation.fn)
    except BrokenAiter as error:
        result.outcome, result.detail = "failed", str(error)
        if isinstance(error.__cause__, NotTritonError):
            result.outcome, result.detail = "not triton", str(error.__cause__)
    except Exception as error:
        result.outcome, result.detail = "failed", f"{type(error).__name__}: {_first_line(error)}"
    else:
        if verdict is None:
            result.outcome, result.detail = "wrong", broken or ""
            return
        result.error, result.tolerance = verdict.error, verdict.tolerance
        if not verdict.ok:
            result.outcome, result.detail = "wrong", verdict.detail


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")[:300]


def say(kind: str, value: Any) -> None:
    print(f"\n{MARK}{json.dumps({kind: value})}", flush=True)


def usable() -> bool:
    """Whether this process's GPU still takes work, after all that was given to it is done."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.zeros(1, device="cuda").item()
    except Exception:
        return False
    return True


def main() -> int:
    raw = json.loads(sys.argv[1])
    request = Request(**{**raw, "source": Source(*raw["source"])})
    torch.set_num_threads(2)
    try:
        for said in results(request):
            if isinstance(said, str):
                say("begun", said)
                continue
            say("result", asdict(said))
            if not usable():
                return ENDS_CONTEXT
    except BrokenAiter as error:
        say("out", str(error))
    except ImportError as error:
        say("out", f"cannot be imported here: {type(error).__name__}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
