"""The table of peers: per op and library, a function that makes a zero-argument call from the op's arguments.

Buffers a library writes into are allocated when the call is made, so capturing a call in a graph records kernels only.
A call returns its outputs in the op's order; an output a library does not produce is None. Libraries that work in
place get private copies of what they overwrite. Repeating such a call keeps adding into its own residual: the first
result is the one to compare, later ones are for timing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

Kwargs = dict[str, Any]
Call = Callable[[], Any]
Factory = Callable[[Kwargs], Call]

PEERS: dict[str, dict[str, Factory]] = {}
"""op -> name -> factory; the part of a name before a dot is its library."""

EAGER: set[tuple[str, str]] = set()
"""(op, name) of the peers that wait for the GPU inside, so that no graph can hold them"""

LOADED: dict[str, str | None] = {"torch": None}
"""library -> None where it is loaded, else why not."""


class Unsupported(ValueError):
    """The library has the operator, but not with these arguments."""


def peer(op: str, name: str, eager: bool = False) -> Callable[[Factory], Factory]:
    """Register a factory for operator ``op``; the part of ``name`` before a dot is its library. eager: see `EAGER`."""

    def register(factory: Factory) -> Factory:
        if eager:
            EAGER.add((op, name))
        PEERS.setdefault(op, {})[name] = factory
        return factory

    return register


def factories(op: str) -> tuple[dict[str, Factory], dict[str, str]]:
    """The loaded peers of an op by name, and for each other one why it is left out."""
    problems = {name: LOADED.get(name.split(".")[0], "not loaded") for name in PEERS.get(op, {})}
    return (
        {name: factory for name, factory in PEERS.get(op, {}).items() if problems[name] is None},
        {name: problem for name, problem in problems.items() if problem is not None},
    )


def need_package(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise ImportError("not found")


def describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
