"""Operators of the pseudocode: literals, types, casts, bits, arithmetic and comparisons of `Value`s."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from .pseudocode import Value, arithmetic, bitwise, exactly, number, rounded, shifted, truth, whole

State = dict[Any, Value]
Closure = Callable[[State], Value]
KIND = re.compile(r"(u|i|b|f|bf|fp|U)(\d+)$")


class Unread(Exception):
    """A construct that this reader does not know."""


def literal(token: str) -> Value | None:
    if found := re.fullmatch(r"(\d+)'(0x[0-9a-fA-F]+|\d+)U?", token):
        return whole(int(found[2], 0), int(found[1]), "u")
    if found := re.fullmatch(r"(\d+\.\d+)(F?)", token):
        return rounded(float(found[1]), 32 if found[2] else 64, "f")
    if found := re.fullmatch(r"(\d+)F", token):
        return rounded(float(found[1]), 32, "f")
    if found := re.fullmatch(r"(0x[0-9a-fA-F]+|\d+)(ULL|LL|U)?", token):
        return whole(
            int(found[1], 0), 64 if found[2] in ("ULL", "LL") else 32, "u" if (found[2] or "").startswith("U") else "i"
        )
    return None


def typed(v: Value, kind: str) -> Value:
    """v.u32 and the like: the low bits, as that kind."""
    found = KIND.fullmatch(kind)
    if found is None:
        if kind in ("fp8", "bf8", "fp4", "fp6", "bf6"):
            return whole(v.bits, 4 if kind == "fp4" else 8, "u")
        raise Unread(kind)
    name, width = found[1], int(found[2])
    if (name == "bf" and width == 8) or name == "fp":
        return whole(v.bits, width, "u")
    bits = number(v) if v.kind == "i" else v.bits
    return whole(bits, width, {"b": "u", "U": "u"}.get(name, name))


def cast(v: Value, width: int, kind: str) -> Value:
    if kind == "B":
        return whole(v.bits, width, v.kind if v.kind == "i" else "u")
    if kind in "UI":
        x = int(number(v)) if v.kind == "f" else number(v)
        return whole(x, width, kind.lower())
    if v.kind == "b" and v.width == width:
        return Value(v.bits, width, "f")
    if v.kind not in ("f", "bf"):
        return rounded(Fraction(number(v)) if number(v) else 0.0, width, "f")
    if v.width == width and v.kind == "f":
        return v
    x = number(v)
    if x != x:  # NaN with its fraction
        sign = v.bits >> (v.width - 1)
        if (v.width, width) == (32, 64):
            return Value(sign << 63 | 0x7FF << 52 | (v.bits & 0x7FFFFF) << 29, 64, "f")
        if (v.width, width) == (64, 32):
            return Value(sign << 31 | 0xFF << 23 | (v.bits >> 29 & 0x7FFFFF), 32, "f")
    return rounded(exactly(v), width, "f")


def sliced(value: Closure, high: Closure, low: Closure) -> Closure:
    def run(state: State) -> Value:
        v, top, bottom = value(state), high(state).bits, low(state).bits
        if top < bottom:
            width = bottom - top + 1
            return whole(int(f"{v.bits >> top & ((1 << width) - 1):0{width}b}"[::-1], 2), width, "u")
        return whole(v.bits >> bottom, top - bottom + 1, "u")

    return run


def joined(parts: list[Value]) -> Value:
    """Bits without a type: as a float they are its pattern."""
    bits = width = 0
    for v in parts:
        bits, width = bits << v.width | v.bits, width + v.width
    return Value(bits, width, "b")


def power(a: Value, b: Value) -> Value:
    # beyond 2^±1000 every product is beyond the formats
    return a._replace(exact=Fraction(number(a)) ** max(-1000, min(1000, number(b))))


def compared(op: str, a: Value, b: Value) -> Value:
    x, y = number(a), number(b)
    if op in ("==", "!=", "<>"):
        return truth((x == y) == (op == "==")) if op != "<>" else truth(x < y or x > y)
    return truth({"<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y}[op])


def combined(op: str, left: Closure, right: Closure) -> Closure:
    if op == "&&":
        return lambda state: truth(bool(left(state).bits and right(state).bits))
    if op == "||":
        return lambda state: truth(bool(left(state).bits or right(state).bits))
    function: Callable[[Value, Value], Value]
    if op in ("+", "-", "*"):
        function = lambda a, b: arithmetic(op, a, b)  # noqa: E731
    elif op in ("&", "|", "^"):
        function = lambda a, b: bitwise(op, a, b)  # noqa: E731
    elif op in ("<<", ">>"):
        function = lambda a, b: shifted(op, a, b)  # noqa: E731
    elif op == "**":
        function = power
    elif op == "/":
        raise Unread("division")
    else:
        function = lambda a, b: compared(op, a, b)  # noqa: E731
    return lambda state: function(left(state), right(state))
