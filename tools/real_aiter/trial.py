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
    try:
        here = install(op, request.source)
    except Exception as error:
        raise BrokenAiter(f"cannot be imported here: {type(error).__name__}: {_first_line(error)}") from error
    implementation = op.implementations["aiter"]
    wanted = entries(op, request.source.release)
    if broken := [f"{s.name}: {s.state}" for s in probe.symbols(implementation.calls, here) if s.state]:
        mine = [text for text in broken if runs(wanted[text.split(":")[0]])]
        if mine:
            raise BrokenAiter("; ".join(mine))
    device = "cpu" if request.interpret else "cuda"
    samples = op.samples(device, request.seed, "small" if request.interpret else None)
    for i, sample in enumerate(samples):
        if i % request.step != request.first or i // request.step < request.done:
            continue
        yield sample.name
        yield tried(op, implementation, prepared(op, sample, here, request.interpret), here, request.interpret)


def prepared(op: Op, sample: Sample, here: Platform, interpret: bool) -> Sample:
    """The sample with every argument given, in types that the adapter takes and that can be computed with here.

    What the adapter refuses is tried in 16 bits where it is in fp32, and with activations to be quantised (prequant),
    where these are calls of the op: AITER takes little else. The interpreter computes wrongly with bf16: there fp16.
    """
    half = torch.float16 if interpret else torch.bfloat16
    refuses = op.implementations["aiter"].refuses
    plain = Sample(sample.name, *_cast(op, sample.args, sample.kwargs, {torch.bfloat16: half}), sample.size)
    forms = [_bound(op, plain, here)]
    forms.append(_renamed(forms[0], f"in {str(half)[6:]}", *_cast(op, *_arguments(forms[0]), {torch.float32: half})))
    if "prequant" in op.parameters:
        forms += [_bound(op, _renamed(form, "prequant", *_with(op, form, "prequant", True)), here) for form in forms]
    taken = (form for form in forms if _is_call(op, form) and refuses(*form.args, **form.kwargs) is None)
    return next(taken, forms[0])


def _arguments(sample: Sample) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return sample.args, sample.kwargs


def _bound(op: Op, sample: Sample, here: Platform) -> Sample:
    """The sample with every argument given."""
    return Sample(sample.name, *op.bind(sample.args, sample.kwargs, here), sample.size)


def _renamed(sample: Sample, what: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sample:
    return Sample(f"{sample.name}, {what}", args, kwargs, sample.size)


def _with(op: Op, sample: Sample, name: str, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a sample that has all, with another value of one."""
    if name in sample.kwargs:
        return sample.args, {**sample.kwargs, name: value}
    at = op.parameters.index(name)
    return (*sample.args[:at], value, *sample.args[at + 1 :]), sample.kwargs


def _cast(
    op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], types: dict[torch.dtype, torch.dtype]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with tensors of one type in another; fp32 vectors and scales stay what they are."""

    def cast(name: str, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return types.get(value, value)
        if not isinstance(value, torch.Tensor) or value.dtype not in types:
            return value
        if value.dtype == torch.float32 and (value.dim() < 2 or "scale" in name or name == "cos_sin_cache"):
            return value
        return value.to(types[value.dtype])

    positional = tuple(cast(name, value) for name, value in zip(op.parameters, args, strict=False))
    return positional, {name: cast(name, value) for name, value in kwargs.items()}


def _is_call(op: Op, sample: Sample) -> bool:
    try:
        op.checks(*sample.args, **sample.kwargs)
    except (TypeError, ValueError):
        return False
    return True


def tried(op: Op, implementation: Implementation, sample: Sample, here: Platform, interpret: bool) -> Result:
    """One sample through the adapter, against the reference."""
    args, kwargs = sample.args, sample.kwargs
    result = Result(op.name, sample.name, "right")
    rows = [row for row in KNOWN_BAD if row.matches(op.name, "aiter", here) and row.covers(*args, **kwargs)]
    result.known_bad = "; ".join(map(str, rows))
    if reason := implementation.refuses(*args, **kwargs):
        result.outcome, result.detail = "refused", reason
    elif isinstance(args[0], torch.Tensor) and not args[0].numel():
        result.outcome = "empty"
    elif interpret and interpreter.too_large(*args, *kwargs.values()):
        result.outcome, result.detail = "left out", "too large for the interpreter"
    elif interpret and op.name in interpreter.BEYOND:
        result.outcome, result.detail = "left out", interpreter.BEYOND[op.name]
    else:
        _compared(op, implementation, sample, result, interpret)
    return result


def _compared(op: Op, implementation: Implementation, sample: Sample, result: Result, interpret: bool) -> None:
    try:
        verdict, broken = against(op, sample, implementation)
    except BrokenAiter as error:
        result.outcome, result.detail = "failed", str(error)
        if isinstance(error.__cause__, NotTritonError):
            result.outcome, result.detail = "not triton", str(error.__cause__)
    except Exception as error:
        result.outcome, result.detail = "failed", f"{type(error).__name__}: {_first_line(error)}"
        if interpret and (why := interpreter.cannot(error)):
            result.outcome, result.detail = "left out", why
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
