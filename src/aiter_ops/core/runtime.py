"""The state behind the slots: which platform and policy hold now, and how a slot is resolved from them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import codegen, provider, tracing
from .decide import VARIES, Candidate, Decision, Refused, candidates, decide
from .platforms import Platform, platform
from .policy import ENVIRONMENT, Policy, SettingsError, parse_rules
from .settings import Settings, read_settings

if TYPE_CHECKING:
    from .op import Op


class _State:
    """`token` changes whenever a decision may change; compiled code guards on it (a string is guarded by value)."""

    def __init__(self) -> None:
        self.token = "0"
        self.settings: Settings | None = None
        self.policy = Policy()
        self.used: list[tuple[int, str]] = []
        self.trace: tracing.Trace | None = None


state = _State()
lock = threading.RLock()
ops: dict[str, Op] = {}


def _changed() -> None:
    state.token = str(int(state.token) + 1)
    for op in ops.values():
        op.unresolve()


def targets() -> list[str]:
    """What a rule may name: ops and families."""
    return [*ops, *{op.family for op in ops.values()}]


def policy() -> Policy:
    """The policy in force; the environment is read at the first call."""
    with lock:
        if state.settings is None:
            settings = read_settings()
            provider.load_plugins(settings.plugins)
            rules, off = parse_rules(
                settings.rules, "AITER_OPS", ENVIRONMENT, targets(), provider.provider_names(), platform()
            )
            if settings.trace and state.trace is None:
                try:
                    state.trace = tracing.start_trace(settings.trace)
                except OSError as error:
                    raise SettingsError(f"AITER_OPS_TRACE={settings.trace!r} cannot be written: {error}") from None
            state.policy = Policy(rules, settings.strict, off, settings.flags_off, settings.batch_invariant)
            state.settings = settings
        return state.policy


def settings() -> Settings:
    """The settings in force."""
    policy()
    assert state.settings is not None
    return state.settings


def reload_settings() -> None:
    """Read the environment again and choose anew. Not inside `use`."""
    with lock:
        if state.used:
            raise RuntimeError("reload_settings() inside use(); leave the context first")
        state.settings = None
        tracing.forget_warnings()
        policy()
        _changed()


@contextlib.contextmanager
def use(rules: str = "", strict: bool | None = None, batch_invariant: bool | None = None) -> Iterator[None]:
    """Rules for the whole process while the context lasts; meant for set-up and tests.

    rules: the grammar of AITER_OPS, e.g. ``"moe=triton,-aiter"``. strict, batch_invariant: as AITER_OPS_STRICT
    and AITER_OPS_BATCH_INVARIANT; None keeps what holds.
    Raises SettingsError for rules that cannot be taken, RuntimeError where another thread holds a different one.
    """
    with lock:
        me = threading.get_ident()
        if state.used and state.used[-1][0] != me:
            raise RuntimeError(f"use({rules!r}): another thread is inside use({state.used[-1][1]!r})")
        before = policy()
        rank = ENVIRONMENT + 1 + len(state.used)
        parsed, off = parse_rules(rules, "use()", rank, targets(), provider.provider_names(), platform())
        state.policy = before.with_rules(parsed, strict)._replace(
            off=off or (before.off and not parsed),
            batch_invariant=before.batch_invariant if batch_invariant is None else batch_invariant,
        )
        state.used.append((me, rules))
        _changed()
    try:
        yield
    finally:
        with lock:
            state.used.pop()
            state.policy = before
            _changed()


def record() -> contextlib.AbstractContextManager[tracing.Recorder]:
    """Count calls: ``with record() as calls: …``; `calls` is then a list of Call(op, provider, shapes, dtypes, count).

    Calls that torch.compile inlined as the reference are part of the compiled graph and are not counted.
    """
    return tracing.recording(_changed)


def find(op: Op, machine: Platform, rules: Policy) -> list[Candidate]:
    """All candidates of an op on a machine under a policy; loads the providers' modules that can serve there."""
    names = provider.provider_names()
    missing: dict[str, str] = {}
    standings: dict[str, provider.Standing] = {}
    bad = []
    for name in names:
        if name == "torch":
            continue
        source = provider.get_provider(name)
        bad += list(source.known_bad)
        if name not in op.implementations_loaded():
            reason = source.requirements.unmet(machine) or provider.load_family(source, op.family)
            if reason:
                missing[name] = reason
        implementation = op.implementations_loaded().get(name)
        if source.stands and implementation and implementation.unmet(machine) is None:
            standings[name] = source.stands(implementation.calls, machine)
    return candidates(op.name, op.family, op.implementations_loaded(), names, machine, rules, bad, missing, standings)


def explain(
    op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], machine: Platform, gpu: bool, note: str = ""
) -> Decision:
    """The decision for these arguments, as data. gpu: the tensors count as being on the machine's GPU."""
    rules = policy()
    found = find(op, machine, rules)
    bound_args, bound_kwargs = op.bind(args, kwargs, machine)
    choice = decide(op.name, found, rules, op.family, gpu, bound_args, bound_kwargs, machine.triton_interpret)
    return Decision(choice.op, choice.provider, choice.fn, choice.reasons, note)


def resolve(op: Op) -> Any:
    """The function for an op's slot: what serves now, found once. Warns about requested providers that cannot."""
    rules, machine = policy(), platform()
    found = find(op, machine, rules)
    if not machine.has_gpu:
        return _link(op, found, rules)
    return codegen.by_device(
        op.signature, _link(op, found, rules), _link(op, [c for c in found if not _gpu_only(c)], rules)
    )


def _gpu_only(candidate: Candidate) -> bool:
    return candidate.implementation is not None and any(r.gpu for r in candidate.implementation.requirements)


def _link(op: Op, found: list[Candidate], rules: Policy) -> Any:
    """One slot over the candidates, in order; a requested provider that cannot serve at all is warned about here."""
    preferred, _ = rules.preference(op.name, op.family)
    links: list[tuple[Any, Any, Any]] = []
    for candidate in found:
        name, requested = candidate.provider, candidate.provider in preferred
        if candidate.out is not None or candidate.implementation is None:
            if requested:
                _tell(op, name, candidate.out or "")
            continue
        if rules.strict and preferred and not requested:
            continue
        serve = candidate.implementation.fn
        if rules.batch_invariant and not candidate.implementation.batch_invariant:
            serve = codegen.before(op.signature, _varies_noter(op), serve)
        if tracing.recorders:
            serve = codegen.before(op.signature, tracing.hook_for(op.name, name), serve)
        if candidate.predicate is None:
            return codegen.chain(op.signature, links, serve, op.checks) if links else serve
        links.append((candidate.predicate, _noter(op, name, requested), serve))
    end = _refuser(op, found, preferred)
    return codegen.chain(op.signature, links, end, op.checks) if links else end


def _tell(op: Op, name: str, reason: str) -> None:
    def affected() -> list[str]:
        rules, machine, names = policy(), platform(), []
        for other in ops.values():
            if other.family != op.family or name not in rules.preference(other.name, other.family)[0]:
                continue
            names += [other.name for c in find(other, machine, rules) if c.provider == name and c.out == reason]
        return names

    tracing.note_passed_over(op.name, name, reason, affected)


def _noter(op: Op, name: str, requested: bool) -> Any:
    def note(reason: str) -> None:
        if requested:
            tracing.note_passed_over(op.name, name, reason, lambda: [op.name])

    return note


def note_varies(op: Op) -> None:
    """Count that the reference served an op although batch invariance was asked for; warn once for its family."""

    def affected() -> list[str]:
        rules, machine = policy(), platform()
        served = {o.name: _first(find(o, machine, rules)) for o in ops.values() if o.family == op.family}
        return [n for n, i in served.items() if n == op.name or (i and i.provider == "torch" and not i.batch_invariant)]

    reason = f"the reference of the family {op.family} serves: {VARIES}"
    tracing.note_passed_over(op.name, "a batch-invariant implementation", reason, affected)


def _first(found: list[Candidate]) -> provider.Implementation | None:
    return next((c.implementation for c in found if c.out is None and c.implementation), None)


def _varies_noter(op: Op) -> Any:
    return lambda *args, **kwargs: note_varies(op)


def _refuser(op: Op, found: list[Candidate], preferred: tuple[str, ...]) -> Any:
    """The end of a slot that nothing serves: says why for each provider."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        parts = []
        for candidate in found:
            if preferred and candidate.provider not in preferred:
                continue
            reason = candidate.out or (candidate.predicate(*args, **kwargs) if candidate.predicate else None)
            parts.append(f"{candidate.provider}: {reason}")
        missing = [p for p in preferred if p not in [c.provider for c in found]]
        parts += [f"{p}: the tensors are not on a GPU" for p in missing]
        raise Refused(f"{op.name}: no {'requested ' if preferred else ''}provider serves; {'; '.join(parts)}")

    return refuse


def inlines(name: str, token: str, device: str) -> bool:
    """Whether torch.compile may trace the reference of an op: declared inline, and nothing but torch can serve there."""
    op = ops[name]
    if not op.inline:
        return False
    rules, machine = policy(), platform()
    gpu = device == "cuda" and machine.has_gpu
    preferred, _ = rules.preference(op.name, op.family)
    for candidate in find(op, machine, rules):
        if candidate.out is not None or candidate.implementation is None:
            continue
        if candidate.provider == "torch":
            if rules.strict and preferred and "torch" not in preferred:
                return False
            if rules.batch_invariant and not candidate.implementation.batch_invariant:
                note_varies(op)
            return True
        if gpu or machine.triton_interpret or not _gpu_only(candidate):
            return False
    return False


# torch.compile evaluates it while tracing; `token`, guarded by value, stands for all it reads.
inlines._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _after_fork() -> None:
    lock.release()
    state.used = [(threading.get_ident(), text) for _, text in state.used]


# no process starts in the middle of another thread's decision; taken before the lock of `provider`, as everywhere
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=_after_fork)
