"""The table of faces: functions with vLLM's names and call forms, each over ops of the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class NotHonoured(ValueError):
    """An argument of vLLM's call form that no op of the layer honours; ignoring it would change the meaning."""


class Later(NotImplementedError):
    """A method or op of vLLM's whose op the layer does not have yet."""


class Face(NamedTuple):
    """One function of vLLM's layer.

    fn: vLLM's signature and, as its body, how arguments and results map. of: the ops it is a face of. row, op: the
    number in `schemas` and the name of the torch op with this signature, 0 and "" where vLLM registers none.
    mutates: the tensors that op writes to. methods: names in the class.
    """

    fn: Callable[..., Any]
    of: tuple[str, ...]
    row: int
    op: str
    mutates: tuple[str, ...]
    methods: tuple[str, ...]


FACES: list[Face] = []


def face(
    *of: str, row: int = 0, op: str = "", mutates: tuple[str, ...] = (), methods: tuple[str, ...] | None = None
) -> Callable[[F], F]:
    """Take the decorated function into the table; its own name is its method unless `methods` says otherwise."""

    def take(fn: F) -> F:
        FACES.append(Face(fn, of, row, op, mutates, (fn.__name__,) if methods is None else methods))
        return fn

    return take


def later(what: str, op: str) -> NoReturn:
    """Raise `Later` for `what`, which waits for `op`."""
    raise Later(f"{what}: the layer has no {op} yet; it is on the list of later ops")


def only(what: str, name: str, value: Any, accepted: tuple[Any, ...], why: str) -> None:
    """NotHonoured where `value` is none of `accepted` (compared by `is` and, but for tensors, by ==)."""
    if not any(value is a or (isinstance(value, (bool, int, float, str)) and value == a) for a in accepted):
        given = repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__
        taken = ", ".join(repr(a) for a in accepted)
        raise NotHonoured(f"{what}: {name} is {given}, which is not honoured: {why}; accepted: {taken}")
