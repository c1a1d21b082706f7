"""A stand-in for AITER: an importable package with the functions and signatures of one release."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiter_ops.core import platforms
from aiter_ops.core.platforms import Platform
from aiter_ops.providers.aiter import call, probe
from aiter_ops.providers.aiter.contract.table import table


def signatures(release: str) -> dict[str, inspect.Signature]:
    """ "module:function" -> its signature in that release, of every function the adapters call."""
    rows = {name: table().at(name, release) for name in table().entries}
    return {f"{r.module}:{n}": r.signature() for n, r in rows.items() if r and r.visible != "value"}


Before = Callable[[str, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]
"""Sees a call as the adapter makes it, by entry, positions and names, and gives what is called in its place."""


def _bound(
    name: str, signature: inspect.Signature, kernel: Callable[..., Any], before: Before | None
) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        if before:
            args, kwargs = before(name, args, kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return kernel(**given.arguments)

    return function


Install = Callable[..., None]


@pytest.fixture
def install_aiter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(machine, kernels, before=None, **renamed): the stand-in of ``machine.aiter`` in sys.modules, and `machine` as platform.

    kernels: an object with a method per function, called with the release's parameters by name, and perhaps `modules`,
    what else lies in a module. renamed: old parameter name = new one, in every function.
    """

    def module(path: str) -> types.ModuleType:
        parts = path.split(".")
        for i in range(1, len(parts) + 1):
            step = ".".join(parts[:i])
            if step not in sys.modules:
                monkeypatch.setitem(sys.modules, step, types.ModuleType(step))
            if i < len(parts):  # a package: something lies in it
                sys.modules[step].__path__ = []
        return sys.modules[path]

    def install(machine: Platform, kernels: Any, before: Before | None = None, **renamed: str) -> None:
        assert machine.aiter is not None
        for name in [n for n in sys.modules if n.split(".")[0] == "aiter"]:
            monkeypatch.delitem(sys.modules, name)
        for key, signature in signatures(machine.aiter).items():
            path, name = key.split(":")
            if not hasattr(kernels, name):
                continue
            params = [p.replace(name=renamed.get(p.name, p.name)) for p in signature.parameters.values()]
            setattr(module(path), name, _bound(name, inspect.Signature(params), getattr(kernels, name), before))
        for path, members in getattr(kernels, "modules", {}).items():
            vars(module(path)).update(members)
        vars(module("aiter")).update(dict.fromkeys(probe.CANARY))
        monkeypatch.setattr(platforms, "platform", lambda: machine)
        forget()

    def forget() -> None:
        call.entry.cache_clear()
        call._import_aiter.cache_clear()

    with monkeypatch.context() as monkeypatch:
        yield install
    forget()
