"""One implementation against the reference, over the op's samples on one device, in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from aiter_ops.core import runtime
from aiter_ops.core.compare import Verdict, compare, own_copy
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform, platform
from aiter_ops.core.provider import Implementation
from aiter_ops.core.samples import Sample

from . import support

Outcome = Literal["ok", "reference", "failed", "crashed", "not here"]
"""``reference``: torch, which is the yardstick; only its own invariants were checked, so it is no pass.
``not here``: nothing could be run on this machine, with the reason."""


@dataclass
class Row:
    """What came of one op on one provider, over `run` samples that were accepted and `refused` ones.

    error, tolerance: at the worst coordinate of all samples, absolute. refusals: ``sample: reason``.
    """

    op: str
    family: str
    provider: str
    device: str
    verdict: Outcome
    run: int = 0
    refused: int = 0
    error: float = 0.0
    tolerance: float = 0.0
    detail: str = ""
    refusals: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return self.verdict in ("failed", "crashed")

    def note(self, verdict: Verdict) -> None:
        """Keep the error that is largest beside its tolerance."""
        ratio, most = (e / t if t else e for e, t in ((verdict.error, verdict.tolerance), (self.error, self.tolerance)))
        if ratio > most or not self.tolerance:
            self.error, self.tolerance = verdict.error, verdict.tolerance

    def fail(self, sample: Sample, detail: str) -> Row:
        self.verdict, self.detail = "failed", f"sample '{sample.name}': {detail}"
        return self

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """New tensors hold NaN or the largest integer until they are written, so that nothing unwritten passes."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _raw(t: torch.Tensor) -> torch.Tensor:
    return t.detach().reshape(-1).contiguous().view(torch.uint8)


class _Trial:
    """One sample run by one function, with what has to hold whatever the numbers are."""

    def __init__(self, op: Op, sample: Sample, fn: Any) -> None:
        args, kwargs = op.bind(sample.args, sample.kwargs)
        names = [p.name for p in op.signature.params if not p.keyword_only]
        given = {**dict(zip(names, args, strict=True)), **kwargs}
        mutated = op.signature.mutates
        given = {n: own_copy(v) if n in mutated and v is not None else v for n, v in given.items()}
        tensors = {n: v for n, v in given.items() if isinstance(v, torch.Tensor)}
        before = {n: v.clone() for n, v in tensors.items() if n not in mutated}
        out = fn(*[given[n] for n in names], **{n: given[n] for n in kwargs})
        returned, written = op.as_tuple(out), [n for n in mutated if given[n] is not None]
        self.results = (*returned, *[given[n] for n in written])
        self.names = (*op.results, *written)
        self.broken = self._broken(op, returned, tensors, before)

    @staticmethod
    def _broken(
        op: Op, out: tuple[torch.Tensor, ...], tensors: dict[str, torch.Tensor], before: dict[str, torch.Tensor]
    ) -> str | None:
        for name, copy in before.items():
            if not torch.equal(_raw(tensors[name]), _raw(copy)):
                return f"input {name} was changed by the call"
        held = {t.untyped_storage().data_ptr(): f"input {n}" for n, t in tensors.items() if t.numel()}
        for name, t in zip(op.results, out, strict=False):
            memory = t.untyped_storage().data_ptr()
            if t.numel() and memory in held:
                return f"result {name} shares memory with {held[memory]}"
            held[memory] = f"result {name}"
        return None


def against(op: Op, sample: Sample, implementation: Implementation) -> tuple[Verdict | None, str | None]:
    """The verdict on the numbers, and what else is wrong."""
    want = _Trial(op, sample, op.reference)
    with _poisoned():
        got = _Trial(op, sample, implementation.fn)
    if got.broken:
        return None, got.broken
    return compare(got.results, want.results, want.names, implementation.tolerance or op.tolerance), None


def _reference(op: Op, sample: Sample) -> str | None:
    """What is wrong with the reference itself: it repeats to the bit, and strides change no more than rounding."""
    first = _Trial(op, sample, op.reference)
    if first.broken:
        return first.broken
    with _poisoned():
        again = _Trial(op, sample, op.reference)
    for name, a, b in zip(first.names, first.results, again.results, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(_raw(a), _raw(b)):
            return f"result {name} changes when the call is repeated"
    args = tuple(a.contiguous() if isinstance(a, torch.Tensor) else a for a in sample.args)
    flat = _Trial(op, Sample(sample.name, args, sample.kwargs), op.reference)
    # what is written to has the strides it was given
    count = len(op.results)
    a, b = ((*t.results[:count], *(w.contiguous() for w in t.results[count:])) for t in (first, flat))
    verdict = compare(a, b, first.names, op.tolerance)
    return None if verdict.ok else f"with contiguous inputs instead: {verdict.detail}"


def _elsewhere(implementation: Implementation, device: torch.device) -> bool:
    """Whether it takes GPU tensors only, and these are none."""
    gpu_only = any(r.gpu for r in implementation.requirements)
    return gpu_only and device.type == "cpu" and not platform().triton_interpret


def verify_one(op: Op, provider: str, device: torch.device, size: str | None, seed: int) -> Row:
    """One row. What the policy excludes or known-bad evidence names is refused here as it is in a call.

    A sample that the checked-in support matrix promises and that is refused is a failure.
    """
    row = Row(op.name, op.family, provider, str(device), "not here")
    try:
        found = runtime.find(op, platform(), runtime.policy())
    except Exception as error:
        row.verdict, row.detail = "failed", f"a module fails to import: {type(error).__name__}: {error}"
        return row
    candidate = next(c for c in found if c.provider == provider)
    if candidate.implementation is None or candidate.out:
        row.detail = candidate.out or ""
        return row
    if _elsewhere(candidate.implementation, device):
        row.detail = "the tensors are not on a GPU"
        return row
    row.verdict = "reference" if provider == "torch" else "ok"
    for sample in op.samples(device, seed, size):
        args, kwargs = op.bind(sample.args, sample.kwargs)
        if candidate.predicate and (reason := candidate.predicate(*args, **kwargs)):
            row.refused += 1
            row.refusals.append(f"{sample.name}: {reason}")
            if _promised(op, provider, sample):
                return row.fail(sample, f"refused, though the support matrix promises it: {reason}")
            continue
        row.run += 1
        try:
            if provider == "torch":
                verdict, wrong = None, _reference(op, sample)
            else:
                verdict, wrong = against(op, sample, candidate.implementation)
        except Exception as error:
            return row.fail(sample, f"{type(error).__name__}: {error}")
        if wrong:
            return row.fail(sample, wrong)
        if verdict is None:
            continue
        row.note(verdict)
        if not verdict.ok:
            return row.fail(sample, verdict.detail)
    if row.run == 0:
        row.verdict, row.detail = "not here", "every sample is refused"
    return row


def _promised(op: Op, provider: str, sample: Sample) -> bool:
    machine: Platform = platform()
    return not machine.triton_interpret and support.promised(op.name, provider, machine, sample.name)
