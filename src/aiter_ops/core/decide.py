"""The choice of an implementation: a pure function of data, with the reason for each one passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .evidence import KnownBad
from .platforms import Platform
from .policy import Policy
from .provider import Implementation, Predicate, Standing


class Candidate(NamedTuple):
    """One provider for one op on one platform under one policy, before arguments are seen.

    out: why it cannot serve at all, or None. predicate: asks the arguments, or None where all are taken.
    note: what is to be known where it serves.
    """

    provider: str
    implementation: Implementation | None
    out: str | None
    predicate: Predicate | None = None
    note: str | None = None


class Decision(NamedTuple):
    """The implementation chosen for an op and arguments, and why: reasons are (provider, taken, reason) in order."""

    op: str
    provider: str
    fn: Callable[..., Any]
    reasons: tuple[tuple[str, bool, str], ...]
    arguments: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "provider": self.provider,
            "arguments": self.arguments,
            "reasons": [{"provider": p, "taken": t, "reason": r} for p, t, r in self.reasons],
        }

    def __str__(self) -> str:
        head = f"{self.op} -> {self.provider}" + (f"    [{self.arguments}]" if self.arguments else "")
        lines = [f"  {'+' if taken else '-'} {provider:<8} {reason}" for provider, taken, reason in self.reasons]
        return "\n".join([head, *lines])


class Refused(RuntimeError):
    """Strict mode, or an explicit call: what was asked for cannot serve; the message says why."""


VARIES = "its sums, exponentials or matrix products may round otherwise in another batch"


def _varies(implementation: Implementation, policy: Policy) -> str | None:
    """Why a policy that asks for batch invariance passes an implementation over; the reference only where strict."""
    if not policy.batch_invariant or implementation.batch_invariant:
        return None
    if implementation.provider != "torch":
        return "not stated to be batch invariant, as AITER_OPS_BATCH_INVARIANT asks"
    return f"strict: {VARIES}, against AITER_OPS_BATCH_INVARIANT" if policy.strict else None


def _bad_predicate(rows: list[KnownBad], inner: Predicate | None) -> Predicate | None:
    rows = [r for r in rows if r.depends]
    if not rows:
        return inner

    def predicate(*args: Any, **kwargs: Any) -> str | None:
        for row in rows:
            if row.covers(*args, **kwargs):
                return str(row)
        return inner(*args, **kwargs) if inner else None

    return predicate


def candidates(
    op: str,
    family: str,
    implementations: Mapping[str, Implementation],
    order: Iterable[str],
    platform: Platform,
    policy: Policy,
    known_bad: Iterable[KnownBad],
    missing: Mapping[str, str],
    standings: Mapping[str, Standing],
) -> list[Candidate]:
    """Every provider for an op, preferred ones first, as far as they can be judged without arguments.

    `order` is the built-in order; `missing` gives the reason for providers that have no implementation of the op,
    `standings` what providers say of their library on the platform.
    """
    preferred, _ = policy.preference(op, family)
    names = [*preferred, *[n for n in order if n not in preferred]]
    rows = list(known_bad)
    result: list[Candidate] = []
    for name in names:
        implementation = implementations.get(name)
        if implementation is None:
            result.append(Candidate(name, None, missing.get(name) or f"has no implementation of {op}"))
            continue
        standing = standings.get(name, Standing())
        out = (
            policy.exclusion(op, family, name, implementation.flag)
            or implementation.unmet(platform)
            or standing.out
            or _varies(implementation, policy)
            or (f"strict: {standing.note}" if policy.strict and standing.note else None)
        )
        predicate = implementation.predicate(platform) if implementation.predicate and not out else None
        if not out and not policy.lifts(op, family, name):
            bad = [r for r in rows if r.matches(op, name, platform)]
            out = next((str(r) for r in bad if not r.depends), None)
            predicate = _bad_predicate(bad, predicate)
        result.append(Candidate(name, implementation, out, predicate, standing.note))
    return result


def decide(
    op: str,
    found: Iterable[Candidate],
    policy: Policy,
    family: str,
    gpu_tensors: bool,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    interpret: bool = False,
) -> Decision:
    """The first candidate that takes these arguments. Raises Refused where policy or strictness leaves none."""
    preferred, rule = policy.preference(op, family)
    reasons: list[tuple[str, bool, str]] = []
    chosen: Candidate | None = None
    for candidate in found:
        reason = candidate.out
        if reason is None and candidate.implementation is not None:
            gpu_only = any(r.gpu for r in candidate.implementation.requirements)
            if gpu_only and not gpu_tensors and not interpret:
                reason = "the tensors are not on a GPU"
            elif candidate.predicate:
                reason = candidate.predicate(*args, **kwargs)
        if reason is None and chosen is not None:
            reason = f"not needed: {chosen.provider} serves"
        elif reason is None and policy.strict and preferred and candidate.provider not in preferred:
            reason = "strict: not among the requested providers"
        elif reason is None:
            chosen = candidate
            asked = (
                f"asked for by rule {rule}"
                if candidate.provider in preferred
                else "first in built-in order that serves"
            )
            if candidate.note:
                asked += f"; {candidate.note}"
            if policy.batch_invariant and candidate.implementation and not candidate.implementation.batch_invariant:
                asked += f"; not batch invariant: {VARIES}"
            reasons.append((candidate.provider, True, asked))
            continue
        reasons.append((candidate.provider, False, reason))
    if chosen is None or chosen.implementation is None:
        raise Refused(f"{op}: no provider serves; " + "; ".join(f"{p}: {r}" for p, _, r in reasons))
    return Decision(op, chosen.provider, chosen.implementation.fn, tuple(reasons))
