"""Who computes an op: providers, what an implementation needs, and how one is registered."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.metadata
import importlib.util
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .compare import Tolerance
from .evidence import KnownBad, in_window
from .platforms import Platform
from .schema import Signature

if TYPE_CHECKING:
    from .op import Op

Predicate = Callable[..., str | None]

BUILT_IN = {
    "aiter": "aiter_ops.providers.aiter",
    "triton": "aiter_ops.providers.triton",
    "torch": "aiter_ops.providers.torch",
}
"""The providers of the package in built-in order; the strings are module paths, imported when first needed."""


class Call(NamedTuple):
    """A function of the provider's library that an implementation calls, in library versions first <= v < last."""

    name: str
    first: str | None = None
    last: str | None = None


class Standing(NamedTuple):
    """What a provider says of an implementation's calls on a machine: why it is out, or what to know where it is not."""

    out: str | None = None
    note: str | None = None


class Symbol(NamedTuple):
    """One function of a provider's library on a machine, as `doctor` shows it.

    state: empty where it is as it is called, else what is wrong, or what is not known. cold: the extension module that
    its first call has to compile, where there is no compiled one yet.
    """

    name: str
    place: str
    state: str = ""
    cold: str = ""


class Requirements(NamedTuple):
    """What must be true of a machine before an implementation is asked about arguments. Unknown means unsupported.

    vendors, archs (shell patterns): where it runs; empty: anywhere. gpu: its tensors live on a GPU.
    triton, aiter: half-open windows of versions, None: not needed. calls: what it calls of the provider's library.
    """

    vendors: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    gpu: bool = False
    triton: tuple[str | None, str | None] | None = None
    aiter: tuple[str | None, str | None] | None = None
    calls: tuple[Call, ...] = ()

    def unmet(self, platform: Platform) -> str | None:
        """The first requirement this platform does not meet, as a reason; None where all are met."""
        if self.vendors and platform.vendor not in self.vendors:
            has = "no GPU" if not platform.has_gpu else f"{platform.vendor} {platform.arch}"
            return f"needs an {' or '.join(v.upper() for v in self.vendors)} GPU; this machine has {has}"
        if self.gpu and not platform.has_gpu and not platform.triton_interpret:
            return "needs a GPU; this machine has none"
        if self.archs and not any(fnmatch.fnmatchcase(platform.arch, a) for a in self.archs):
            return f"serves {', '.join(self.archs)}; this machine is {platform.arch}"
        for name, window, version in (
            ("Triton", self.triton, platform.triton),
            ("AITER", self.aiter, platform.aiter),
        ):
            if window is None:
                continue
            if version is None:
                return (platform.aiter_fault if name == "AITER" else None) or f"{name} is not installed"
            if version != "assumed" and not in_window(version, window):
                return f"needs {name} {_window_text(window)}; {version} is installed"
        return None


def _window_text(window: tuple[str | None, str | None]) -> str:
    first, last = window
    return " and ".join([f">= {first}"] * (first is not None) + [f"< {last}"] * (last is not None))


class Implementation(NamedTuple):
    """One provider's function for one op.

    batch_invariant: under a policy that asks for it, a row's or token's result does not depend on the rest of the
    batch, bit for bit. tolerance: how far it may be from the reference where that is further than the op's.
    """

    op: str
    provider: str
    fn: Callable[..., Any]
    requirements: tuple[Requirements, ...]
    predicate: Callable[[Platform], Predicate | None] | None = None
    flag: str | None = None
    source: Callable[..., Any] | None = None
    batch_invariant: bool = False
    tolerance: Tolerance | None = None

    @property
    def calls(self) -> tuple[Call, ...]:
        """What it calls of the provider's library."""
        return tuple(call for r in self.requirements for call in r.calls)

    def unmet(self, platform: Platform) -> str | None:
        return next((r for r in (q.unmet(platform) for q in self.requirements) if r), None)

    def refuses(self, *args: Any, **kwargs: Any) -> str | None:
        """Why these arguments, by position or by name, are not taken on this machine, or None."""
        from .op import get_op
        from .platforms import platform

        predicate = self.predicate(platform()) if self.predicate else None
        if predicate is None:
            return None
        values, named = get_op(self.op).bind(args, kwargs)
        return predicate(*values, **named)


@dataclass(eq=False)
class Provider:
    """A source of implementations. Its package holds one module per family, imported when the family is first used.

    imports: the module its families cannot be imported without. around: given an op's signature and an implementation of
    it as the layer runs it, arguments checked, what is run in its place. stands: given the calls of an implementation
    whose other requirements are met, whether the library of a machine has them as they are called. symbols: the same,
    function by function. facts: sentences about the library on a machine, for `doctor`. features: what
    the library there has, by names for people: empty, or why not. trial: a module that, run in a process of its own, imports the library and prints what it found
    (see cli/importing.py).
    """

    name: str
    requirements: Requirements = field(default_factory=Requirements)
    package: str = ""
    imports: str | None = None
    known_bad: tuple[KnownBad, ...] = ()
    around: Callable[[Signature, Callable[..., Any]], Callable[..., Any]] | None = None
    stands: Callable[[tuple[Call, ...], Platform], Standing] | None = None
    symbols: Callable[[tuple[Call, ...], Platform], tuple[Symbol, ...]] | None = None
    facts: Callable[[Platform], tuple[str, ...]] | None = None
    features: Callable[[Platform], dict[str, str]] | None = None
    trial: str | None = None
    distribution: str = "aiter-ops"

    def implements(
        self,
        op: Callable[..., Any] | str,
        *,
        requires: Requirements | None = None,
        refuses: Callable[[Platform], Predicate | None] | None = None,
        flag: str | None = None,
        batch_invariant: bool = False,
        tolerance: Tolerance | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register the decorated function for `op`; its signature must be the op's (TypeError shows both).

        refuses: given the platform, a predicate that returns None (accepts) or a short reason; it is given all of the
        op's arguments in the op's order, by name those that are keyword-only. None where nothing is refused on that platform. flag: the ``VLLM_ROCM_USE_AITER_*`` sub-flag over it.
        batch_invariant: while the policy asks for it, a row's or token's result is the same to the bit whatever comes
        with it in the batch: tiles, split-K and the order of every sum do not follow the number of rows. tolerance: in
        place of the op's, for a library that rounds inside where the op does not; the docstring says where.
        """

        def register(fn: Callable[..., Any]) -> Callable[..., Any]:
            from .op import get_op

            target: Op = get_op(op)
            needs = (self.requirements,) + ((requires,) if requires else ())
            target.add(self, fn, needs, refuses, flag, batch_invariant, tolerance)
            return fn

        return register


_providers: dict[str, Provider] = {}
_loaded: set[tuple[str, str]] = set()
_lock = threading.RLock()
# a process forked in the middle of another thread's import would have half a module, and the lock for ever
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def get_provider(name: str) -> Provider:
    """The provider of that name, built in or registered; unknown names raise ValueError with the known ones."""
    with _lock:
        if name not in _providers and name in BUILT_IN:
            _providers[name] = importlib.import_module(BUILT_IN[name]).PROVIDER
        if name not in _providers:
            raise ValueError(f"unknown provider {name!r}; known: {', '.join(provider_names())}")
        return _providers[name]


def provider_names() -> tuple[str, ...]:
    """All known providers in built-in order; third-party ones come before ``torch``, the reference."""
    extra = [n for n in _providers if n not in BUILT_IN]
    return (*[n for n in BUILT_IN if n != "torch"], *extra, "torch")


def load_family(provider: Provider, family: str) -> str | None:
    """Import a provider's module of one family, once. A family it does not have is fine; a broken module raises.

    Returns why its implementations cannot be known on this machine, or None.
    """
    with _lock:
        key = (provider.name, family)
        if key in _loaded or not provider.package:
            return None
        path = f"{provider.package}.{family}"
        if provider.imports and importlib.util.find_spec(provider.imports) is None:
            return (
                f"cannot be judged here: its kernels need the Python package {provider.imports}, which is not installed"
            )
        if importlib.util.find_spec(path) is not None:
            importlib.import_module(path)
        _loaded.add(key)
        return None


def load_plugins(wanted: tuple[str, ...] | None) -> list[str]:
    """Load third-party providers from entry points ``aiter_ops.providers``; `wanted` None means all.

    Returns the names loaded. A plugin that claims a built-in name, or one another plugin has, is refused with
    both distributions named.
    """
    names: list[str] = []
    for point in importlib.metadata.entry_points(group="aiter_ops.providers"):
        if wanted is not None and point.name not in wanted:
            continue
        owner = point.dist.name if point.dist else "unknown distribution"
        if point.name in BUILT_IN or point.name in _providers:
            holder = "aiter-ops" if point.name in BUILT_IN else _providers[point.name].distribution
            if holder != owner:
                raise ValueError(f"distribution {owner} claims provider name {point.name!r}, which {holder} has")
            continue
        provider = point.load()
        if not isinstance(provider, Provider) or provider.name != point.name:
            raise TypeError(f"entry point {point.name!r} of {owner} is no aiter_ops Provider of that name")
        provider.distribution = owner
        _providers[provider.name] = provider
        names.append(provider.name)
    if wanted is not None and (missing := set(wanted) - set(_providers)):
        raise ValueError(f"AITER_OPS_PLUGINS names {sorted(missing)}, which no installed distribution provides")
    return names
