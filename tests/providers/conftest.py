"""A stand-in for AITER, imported as the package of one release."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aiter_ops.core import platforms
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.providers.aiter import call

from .standin import at, unload, written

Given = tuple[tuple[Any, ...], dict[str, Any]]
Before = Callable[[str, tuple[Any, ...], dict[str, Any]], Given]
"""Sees a call as the adapter makes it, by entry, positions and names, and gives what is called in its place."""

Install = Callable[..., None]


def _forget() -> None:
    unload()
    call.entry.cache_clear()
    call._import_aiter.cache_clear()


@pytest.fixture(scope="session")
def aiter_trees(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The tree of a release on an architecture, with changes as `standin.written` takes them; each is written once."""

    @functools.cache
    def tree(release: str, arch: str, changes: tuple[tuple[str, str], ...] = ()) -> Path:
        folder = tmp_path_factory.mktemp(f"aiter-{release}-{arch}")
        written(folder, release, arch, dict(changes))
        return folder

    return tree


@pytest.fixture
def install_aiter(monkeypatch: pytest.MonkeyPatch, aiter_trees: Callable[..., Path]) -> Iterator[Install]:
    """install(machine, before=None, dropped=None, changes=None): ``import aiter`` gives the stand-in of ``machine.aiter``,
    and `machine` is the platform. Memory that nobody has written is NaN.

    dropped: entry -> parameter -> what it gets, whatever the adapter gives. changes: as `standin.written` takes them.
    """
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)

    def install(
        machine: Platform,
        before: Before | None = None,
        dropped: dict[str, dict[str, Any]] | None = None,
        changes: dict[str, str] | None = None,
    ) -> None:
        assert machine.aiter is not None
        _forget()
        folder = str(aiter_trees(machine.aiter, machine.arch, tuple(sorted((changes or {}).items()))))
        monkeypatch.setattr(sys, "path", [folder, *(p for p in sys.path if not Path(p).name.startswith("aiter-0"))])
        importlib.invalidate_caches()
        monkeypatch.setattr(platforms, "platform", lambda: machine)
        importlib.import_module("aiter")
        for name, row in at(machine.aiter).items() if before else ():
            if row.visible != "value":
                module = importlib.import_module(row.module)
                monkeypatch.setattr(module, name, _seen(name, getattr(module, name), before))
        functions = importlib.import_module("aiter_standin.machine").FUNCTIONS
        for name, values in (dropped or {}).items():
            monkeypatch.setitem(functions, name, functools.partial(_forced, functions[name], values))

    yield install
    torch.use_deterministic_algorithms(False)
    _forget()


def _seen(name: str, function: Callable[..., Any], before: Before) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = before(name, args, kwargs)
        return function(*args, **kwargs)

    return wrapper


def _forced(function: Callable[..., Any], values: dict[str, Any], machine: Any, **given: Any) -> Any:
    return function(machine, **{**given, **values})


@pytest.fixture
def aiter(install_aiter: Install) -> Callable[..., Any]:
    """aiter(release, arch): the stand-in's functions as attributes, and `fp8`."""

    def loaded(release: str, arch: str = "gfx942") -> Any:
        install_aiter(platform_for(arch, aiter=release))
        torch.manual_seed(0)
        found = {n: getattr(importlib.import_module(row.module), n) for n, row in at(release).items()}
        return types.SimpleNamespace(**found, fp8=platform_for(arch, aiter=release).fp8_dtype)

    return loaded
