"""The one signature of an op, and the torch schema written from it."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Union

import torch

_SCALARS = {float: "float", int: "SymInt", bool: "bool", str: "str", torch.dtype: "ScalarType", torch.Tensor: "Tensor"}


class Param(NamedTuple):
    """One parameter: its Python side (kind, default) and its schema side (type, optional, closed set of strings)."""

    name: str
    kind: Any
    default: Any
    type: str
    optional: bool
    choices: tuple[str, ...] = ()

    @property
    def is_tensor(self) -> bool:
        return self.type == "Tensor"

    @property
    def is_fp8_default(self) -> bool:
        """``dtype: torch.dtype | None = None``: None means this machine's FP8 format."""
        return self.name == "dtype" and self.type == "ScalarType" and self.optional

    @property
    def is_eps(self) -> bool:
        """``eps: float``, also with words before it: what is added under a root, so at least 0."""
        return self.type == "float" and (self.name == "eps" or self.name.endswith("_eps"))

    @property
    def length(self) -> int:
        """Of a list of integers, its length; else 0."""
        return int(self.type[len("SymInt[") : -1]) if self.type.startswith("SymInt[") else 0

    @property
    def keyword_only(self) -> bool:
        return bool(self.kind is inspect.Parameter.KEYWORD_ONLY)


class Signature(NamedTuple):
    """Parameters and number of results of an op; every other form of the signature is printed from here."""

    name: str
    params: tuple[Param, ...]
    results: int
    mutates: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[Param, ...]:
        return tuple([p for p in self.params if p.type == "Tensor"])

    @property
    def schema(self) -> str:
        parts: list[str] = []
        named = False
        for p in self.params:
            if not named and p.keyword_only:
                named = True
                parts.append("*")
            alias = f"(a{self.mutates.index(p.name)}!)" if p.name in self.mutates else ""
            text = f"{p.type}{alias}{'?' if p.optional else ''} {p.name}"
            parts.append(text if p.default is inspect.Parameter.empty else f"{text}={_literal(p.default)}")
        result = {0: "()", 1: "Tensor"}.get(self.results, "(" + ", ".join(["Tensor"] * self.results) + ")")
        return f"{self.name}({', '.join(parts)}) -> {result}"

    @property
    def header(self) -> str:
        """The parameter list of a generated function; defaults are looked up as ``_default_<name>``."""
        parts: list[str] = []
        named = False
        for p in self.params:
            if not named and p.keyword_only:
                named = True
                parts.append("*")
            parts.append(p.name if p.default is inspect.Parameter.empty else f"{p.name}=_default_{p.name}")
        return ", ".join(parts)

    @property
    def call(self) -> str:
        """The argument list with which a generated function hands its parameters on."""
        return ", ".join(f"{p.name}={p.name}" if p.keyword_only else p.name for p in self.params)

    @property
    def defaults(self) -> dict[str, Any]:
        return {f"_default_{p.name}": p.default for p in self.params if p.default is not inspect.Parameter.empty}


def _literal(value: Any) -> str:
    if value is None or isinstance(value, (bool, list)):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return f'"{value}"' if isinstance(value, str) else repr(value)


@functools.cache
def _form(hint: Any) -> tuple[str, bool, tuple[str, ...]]:
    """Type in the schema ("" for none), whether None is taken, and the closed set of strings, of an annotation."""
    optional = False
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        optional = len(inner) < len(typing.get_args(hint))
        hint = inner[0] if len(inner) == 1 else hint
    choices: tuple[str, ...] = ()
    if typing.get_origin(hint) is Literal:
        choices, hint = typing.get_args(hint), str
    return "SymInt[" if hint == list[int] else _SCALARS.get(hint, ""), optional, choices


@functools.cache
def _compiled(annotation: str) -> types.CodeType:
    return compile(annotation, "<annotation>", "eval")


def _hint(annotation: Any, names: dict[str, Any]) -> Any:
    """As `typing.get_type_hints`; a text is compiled once, since few are written for hundreds of parameters."""
    return eval(_compiled(annotation), names) if isinstance(annotation, str) else annotation


def _params(fn: Any) -> Iterator[Param]:
    """As `inspect.signature`, at a fraction of its time: every import of the package reads every op."""
    code, empty = fn.__code__, inspect.Parameter.empty
    positional, count = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    starred = (code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)).bit_count()
    values = fn.__defaults__ or ()
    defaults = {
        **dict(zip(code.co_varnames[positional - len(values) :], values, strict=False)),
        **(fn.__kwdefaults__ or {}),
    }
    for i, name in enumerate(code.co_varnames[: count + starred]):
        hint, default = _hint(fn.__annotations__.get(name, empty), fn.__globals__), defaults.get(name, empty)
        form, optional, choices = _form(hint)
        if form == "SymInt[":
            form = f"SymInt[{len(default)}]" if isinstance(default, list) else ""
        if i < code.co_posonlyargcount or i >= count or not form:
            raise TypeError(f"{fn.__name__}: parameter {name}: {hint} has no form in a torch schema")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if i < positional else inspect.Parameter.KEYWORD_ONLY
        yield Param(name, kind, default, form, optional, choices)


def read_signature(fn: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Signature:
    """The `Signature` of a typed Python function. Raises TypeError for what a torch schema cannot say."""
    plain = inspect.unwrap(fn)
    params = tuple(_params(plain))
    returns = _hint(plain.__annotations__.get("return", inspect.Signature.empty), plain.__globals__)
    if returns is torch.Tensor:
        results = 1
    elif returns is None:
        results = 0
    elif typing.get_origin(returns) is tuple and set(typing.get_args(returns)) == {torch.Tensor}:
        results = len(typing.get_args(returns))
    else:
        raise TypeError(f"{fn.__name__}: returns {returns}, not a Tensor, a fixed tuple of Tensors or None")
    unknown = set(mutates) - {p.name for p in params if p.is_tensor}
    if unknown:
        raise TypeError(f"{fn.__name__}: mutates {sorted(unknown)}, which are no tensor parameters of it")
    return Signature(fn.__name__, params, results, mutates)


def require_same_signature(op_name: str, op_fn: Callable[..., Any], provider: str, fn: Callable[..., Any]) -> None:
    """An implementation has the op's names, order, kinds and defaults, or this TypeError shows both signatures."""

    def key(f: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]

    if key(op_fn) != key(fn):

        def show(f: Callable[..., Any]) -> str:
            params = [p.replace(annotation=p.empty) for p in inspect.signature(f).parameters.values()]
            return str(inspect.Signature(params))

        raise TypeError(
            f"provider {provider} implements {op_name} with another signature:\n"
            f"  op:             {op_name}{show(op_fn)}\n  implementation: {fn.__name__}{show(fn)}"
        )
