"""Who is timed on an op: our providers, torch in its forms, and peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from aiter_ops.core import runtime
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import platform

from . import peers
from .cases import Case
from .timing import Call

EAGER, COMPILED = "torch.eager", "torch.compile"


@dataclass(frozen=True)
class Contender:
    """name: a provider of ours, or library[.variant]. make: from one set of arguments, a call without any.

    eager: it waits for the GPU inside, so it cannot be captured in a graph and is timed as it is called.
    """

    name: str
    kind: Literal["ours", "torch", "peer"]
    make: Callable[[dict[str, Any]], Call]
    eager: bool = False

    @property
    def ours(self) -> bool:
        return self.kind == "ours"


@dataclass(frozen=True)
class Selection:
    """Which contenders take part. only: names, libraries or kinds; empty: all; with a minus before it: all but those.
    compile: the cases torch.compile gets."""

    only: tuple[str, ...] = ()
    compile: Literal["none", "large", "all"] = "large"

    def wants(self, name: str, kind: str) -> bool:
        called = {name, name.split(".")[0], kind}
        chosen = {word for word in self.only if not word.startswith("-")}
        return (not chosen or bool(called & chosen)) and not called & {
            word[1:] for word in self.only if word[:1] == "-"
        }


def key(op: str, case: str, name: str) -> str:
    """How problems name a contender at one case; ``op||name`` is the contender at every case."""
    return f"{op}|{case}|{name}"


def problem_of(problems: dict[str, str], op: str, case: str, name: str) -> str | None:
    return problems.get(key(op, "", name)) or problems.get(key(op, case, name))


def kind_of(name: str) -> Literal["torch", "peer"]:
    return "torch" if name.startswith("torch.") else "peer"


def contenders(
    op: Op, kwargs: dict[str, Any], case: Case, large: bool, selection: Selection, problems: dict[str, str]
) -> tuple[list[Contender], dict[str, str]]:
    """The contenders that take these arguments, ours first, and for each other one why it is left out.

    problems: by `key`, why it must not be called again (it failed in a child). torch.compile takes part in ops whose
    reference it can trace as a whole.
    """
    found, left_out = _ours(op, kwargs)
    found.append(Contender(EAGER, "torch", lambda kw: lambda: op.reference(**kw), eager=not op.inline))
    if op.inline and (selection.compile == "all" or (selection.compile == "large" and large)):
        found.append(Contender(COMPILED, "torch", _compiled(op)))
    factories, missing = peers.factories(op.name)
    found += [Contender(n, kind_of(n), factory, (op.name, n) in peers.EAGER) for n, factory in factories.items()]
    left_out.update(missing)
    kept = []
    for contender in found:
        if not selection.wants(contender.name, contender.kind):
            continue
        problem = problem_of(problems, op.name, case.name, contender.name)
        if problem:
            left_out[contender.name] = problem
        else:
            kept.append(contender)
    return kept, {n: r for n, r in left_out.items() if selection.wants(n, "peer" if n in missing else "ours")}


def _ours(op: Op, kwargs: dict[str, Any]) -> tuple[list[Contender], dict[str, str]]:
    """Our providers but torch, in the policy's order; what the policy or a refusal excludes is left out."""
    found: list[Contender] = []
    left_out: dict[str, str] = {}
    values, named = op.bind((), kwargs)
    for candidate in runtime.find(op, platform(), runtime.policy()):
        if candidate.provider == "torch":
            continue
        reason = candidate.out or (candidate.predicate(*values, **named) if candidate.predicate else None)
        if reason or candidate.implementation is None:
            left_out[candidate.provider] = reason or "no implementation"
        else:
            found.append(Contender(candidate.provider, "ours", _bound(candidate.implementation.fn)))
    return found, left_out


def _bound(fn: Callable[..., Any]) -> Callable[[dict[str, Any]], Call]:
    return lambda kwargs: lambda: fn(**kwargs)


def _compiled(op: Op) -> Callable[[dict[str, Any]], Call]:
    """torch.compile of the reference for exactly one shape."""
    compiled: list[Callable[..., Any]] = []

    def make(kwargs: dict[str, Any]) -> Call:
        if not compiled:
            torch._dynamo.reset()
            compiled.append(torch.compile(op.reference, dynamic=False, fullgraph=True))
        return lambda: compiled[0](**kwargs)

    return make


def configure_compiler() -> None:
    """The compiler tunes here, alone on the GPU, and not in the children that fill its cache side by side."""
    import torch._inductor.config as inductor

    inductor.autotune_local_cache = False
    inductor.compile_threads = 1


def unknown_contenders(names: Iterable[str], providers: Iterable[str]) -> list[str]:
    """Those of `names` that no contender, library or kind has."""
    every = {n for table in peers.PEERS.values() for n in table} | {EAGER, COMPILED, *providers, "ours", "peer"}
    return [n for n in names if n.removeprefix("-") not in every | {e.split(".")[0] for e in every}]
