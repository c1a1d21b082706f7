from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from aiter_ops.cli import main
from aiter_ops.core import provider, runtime
from aiter_ops.core.provider import Provider, Requirements


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run a command line in this process, under a fresh reading of the environment."""

    def run(*args: str, **environment: str) -> Result:
        for name, value in {"COLUMNS": "120", **environment}.items():
            monkeypatch.setenv(name, value)
        runtime.state.settings = None
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(list(args))
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    yield run
    monkeypatch.undo()
    runtime.reload_settings()


@pytest.fixture
def plug() -> Iterator[Callable[..., Provider]]:
    """Register a provider for the length of a test: plug("name", {"op": fn}, refuses=…)."""
    added: list[Provider] = []

    def add(name: str, functions: dict[str, Any], package: str = "", **how: Any) -> Provider:
        made = Provider(name, Requirements(), package=package, distribution=name)
        provider._providers[name] = made
        added.append(made)
        for op, fn in functions.items():
            made.implements(op, **how)(fn)
        return made

    yield add
    for made in added:
        del provider._providers[made.name]
        for op in runtime.ops.values():
            op._implementations.pop(made.name, None)
            op.unresolve()
