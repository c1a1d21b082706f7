"""A reader of AMD's instruction pseudocode: statements and expressions as closures over one lane's state.

The state is a dictionary from names to `Value`s; registers are wide, unsigned ones. What the reader does not know is an
`Unread`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .operators import KIND, Closure, State, Unread, cast, combined, joined, literal, sliced, typed
from .pseudocode import FUNCTIONS, TOKEN, Value, arithmetic, conversion, number, truth, whole

ORDER = [
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!=", "<>"),
    ("<", "<=", ">", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/"),
    ("**",),
]


def tokens(text: str) -> list[str]:
    out, at = [], 0
    text = text.rstrip()
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise Unread(text[at : at + 20])
        if not found[1].startswith("//"):
            out.append(found[1])
        at = found.end()
    return out


def nothing(state: State) -> None:
    """A branch that is not there."""


class Reader:
    def __init__(self, text: str, texts: dict[str, str]) -> None:
        self.tokens, self.at, self.texts = tokens(text), 0, texts
        self.defined: dict[str, tuple[list[str], Closure]] = {}

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if wanted and token not in wanted:
            raise Unread(f"{token!r} where {wanted} was expected")
        self.at += 1
        return token

    # --- statements -------------------------------------------------------------------------------------------------

    def block(self, *ends: str) -> Callable[[State], None]:
        steps = []
        while self.peek() and self.peek() not in ends:
            if self.peek() == ";":
                self.take()
            else:
                steps.append(self.statement())

        def run(state: State) -> None:
            for step in steps:
                step(state)

        return run

    def statement(self) -> Callable[[State], None]:
        if self.peek() == "if":
            return self.choice()
        if self.peek() == "for":
            return self.loop()
        if self.peek() == "declare":
            self.take()
            name = self.take()
            self.take(":")
            width = int(self.take().split("'")[0])

            def declare(state: State) -> None:
                state[name] = Value(0, width, "u")

            return declare
        if self.peek() == "{":
            return self.into_several()
        if self.peek(1) == "=" and self.peek(2) == "lambda":
            return self.definition()
        write = self.target()
        op = self.take("=", "+=", "-=")
        value = self.expression()
        if op == "=":
            return lambda state: write(state, value(state))
        read = self.last
        return lambda state: write(state, arithmetic(op[0], read(state), value(state)))

    def definition(self) -> Callable[[State], None]:
        """name = lambda(a, b) (…)"""
        name = self.take()
        self.take("=")
        self.take("lambda")
        self.take("(")
        parameters = [self.take()]
        while self.take(",", ")") == ",":
            parameters.append(self.take())
        self.defined[name] = parameters, self.expression()
        return nothing

    def choice(self) -> Callable[[State], None]:
        branches: list[tuple[Closure, Callable[[State], None]]] = []
        otherwise: Callable[[State], None] = nothing
        self.take("if")
        while True:
            condition = self.expression()
            self.take("then")
            branches.append((condition, self.block("elsif", "else", "endif")))
            if (word := self.take("elsif", "else", "endif")) == "elsif":
                continue
            if word == "else":
                otherwise = self.block("endif")
                self.take("endif")
            break

        def run(state: State) -> None:
            for condition, body in branches:
                if condition(state).bits:
                    return body(state)
            return otherwise(state)

        return run

    def loop(self) -> Callable[[State], None]:
        self.take("for")
        name = self.take()
        self.take("in")
        first = self.expression()
        self.take(":")
        last = self.expression()
        self.take("do")
        body = self.block("endfor")
        self.take("endfor")

        def run(state: State) -> None:
            for i in range(first(state).bits, last(state).bits + 1):
                state[name] = whole(i, 32, "i")
                body(state)

        return run

    def into_several(self) -> Callable[[State], None]:
        """{ D1.u1, D0.u64 } = …: the last takes the lowest bits."""
        self.take("{")
        parts = []
        while True:
            start = self.at
            write = self.target()
            found = KIND.fullmatch(self.tokens[self.at - 1])
            if found is None:
                raise Unread(" ".join(self.tokens[start : self.at]))
            parts.append((write, int(found[2])))
            if self.take(",", "}") == "}":
                break
        self.take("=")
        value = self.expression()

        def run(state: State) -> None:
            bits = value(state).bits
            for write, width in reversed(parts):
                write(state, whole(bits, width, "u"))
                bits >>= width

        return run

    # --- places -----------------------------------------------------------------------------------------------------

    def target(self) -> Callable[[State, Value], None]:
        """name, then types and bits: a function that writes there. `self.last` reads it."""
        start = self.at
        base = self.base()
        steps: list[Any] = []
        while self.peek() in (".", "["):
            if self.take() == ".":
                steps.append(self.take())
                continue
            high = self.expression()
            low = high
            if self.peek() == ":":
                self.take()
                low = self.expression()
            self.take("]")
            steps.append((high, low))
        end = self.at
        self.at = start
        self.last = self.postfix()
        self.at = end

        def write(state: State, v: Value) -> None:
            name = base(state)
            old = state.get(name, Value(0, 64, "u"))
            kind = next((s for s in reversed(steps) if isinstance(s, str)), None)
            slices = [s for s in steps if not isinstance(s, str)]
            if kind and (found := KIND.fullmatch(kind)):
                v = whole(number(v) if v.kind in "ui" else v.bits, int(found[2]), v.kind)
            if not slices:
                if kind is None and not name_is_register(name):
                    state[name] = v
                elif isinstance(name, tuple) or name_is_register(name):
                    width = max(old.width, v.width)
                    keep = old.bits >> v.width << v.width if v.width < 32 else 0
                    state[name] = Value(keep | v.bits, width, "u")
                else:
                    state[name] = v
                return
            high, low = (f(state).bits for f in slices[-1])
            bits = v.bits
            if high < low:
                high, low = low, high
                bits = int(f"{bits & ((1 << (high - low + 1)) - 1):0{high - low + 1}b}"[::-1], 2)
            mask = ((1 << (high - low + 1)) - 1) << low
            state[name] = Value((old.bits & ~mask) | (bits << low & mask), max(old.width, high + 1), "u")

        return write

    def base(self) -> Callable[[State], Any]:
        name = self.take()
        if name != "VGPR":
            return lambda state: name
        self.take("[")
        lane = self.expression()
        self.take("]")
        self.take("[")
        register = self.expression()
        self.take("]")
        return lambda state: ("VGPR", lane(state).bits, register(state).bits)

    # --- expressions ------------------------------------------------------------------------------------------------

    def expression(self) -> Closure:
        condition = self.binary(0)
        if self.peek() != "?":
            return condition
        self.take("?")
        yes = self.expression()
        self.take(":")
        no = self.expression()
        return lambda state: yes(state) if condition(state).bits else no(state)

    def binary(self, level: int) -> Closure:
        if level == len(ORDER):
            return self.unary()
        left = self.binary(level + 1)
        while self.peek() in ORDER[level]:
            op = self.take()
            left = combined(op, left, self.binary(level + 1))
        return left

    def unary(self) -> Closure:
        token = self.peek()
        if token in ("-", "+", "~", "!"):
            self.take()
            inner = self.unary()
            if token == "+":
                return inner
            if token == "!":
                return lambda state: truth(not inner(state).bits)
            if token == "~":
                return lambda state: whole(~(v := inner(state)).bits, v.width, v.kind)

            def minus(state: State) -> Value:
                v = inner(state)
                if v.kind == "f":
                    return v._replace(bits=v.bits ^ 1 << (v.width - 1))
                return whole(-number(v), max(v.width, 32), v.kind)

            return minus
        return self.postfix()

    def postfix(self) -> Closure:
        value = self.primary()
        while self.peek() in (".", "["):
            if self.take() == ".":
                kind = self.take()
                value = as_type(value, kind)
                continue
            high = self.expression()
            low = high
            if self.peek() == ":":
                self.take()
                low = self.expression()
            self.take("]")
            value = sliced(value, high, low)
        return value

    def primary(self) -> Closure:
        token = self.peek()
        if token == "(":
            self.take()
            inner = self.expression()
            self.take(")")
            return inner
        if token == "{":
            self.take()
            parts = [self.expression()]
            while self.take(",", "}") == ",":
                parts.append(self.expression())
            return lambda state: joined([p(state) for p in parts])
        if found := re.fullmatch(r"(\d+)'([FIUB])", token):
            self.take()
            self.take("(")
            inner = self.expression()
            self.take(")")
            return lambda state: cast(inner(state), int(found[1]), found[2])
        if (constant := literal(token)) is not None:
            self.take()
            return lambda state: constant
        if self.peek(1) == "(":
            return self.call()
        base = self.base()

        def read(state: State) -> Value:
            name = base(state)
            if name not in state:
                raise Unread(f"{name} is not known")
            return state[name]

        return read

    def call(self) -> Closure:
        name = self.take()
        self.take("(")
        arguments = [self.expression()]
        while self.take(",", ")") == ",":
            arguments.append(self.expression())
        if name in self.defined:
            parameters, body = self.defined[name]
            return lambda state: body(state | {p: a(state) for p, a in zip(parameters, arguments, strict=True)})
        if name in FUNCTIONS:
            function = FUNCTIONS[name]
        elif re.fullmatch(r"\w+_to_\w+", name):
            function = lambda *values: conversion(name, list(values))  # noqa: E731
        elif re.fullmatch(r"v_(max|min)(3?)(_num)?_(f32|i32|u32)", name):
            function = called(name, self.texts)
        else:
            raise Unread(f"{name}()")
        return lambda state: function(*[a(state) for a in arguments])


def as_type(value: Closure, kind: str) -> Closure:
    return lambda state: typed(value(state), kind)


def name_is_register(name: Any) -> bool:
    return isinstance(name, tuple) or name in ("D0", "D1", "VCC", "EXEC")


def called(name: str, texts: dict[str, str]) -> Callable[..., Value]:
    """A function named after an instruction."""
    program: list[Any] = []

    def run(*values: Value) -> Value:
        if not program:
            program.append(compiled(texts[name], texts))
        state = {f"S{i}": v for i, v in enumerate(values)} | {"WAVE_MODE": Value(1, 32, "u"), "D0": Value(0, 32, "u")}
        program[0](state)
        return state["D0"]._replace(kind=name[-3])

    return run


def compiled(text: str, texts: dict[str, str]) -> Callable[[State], None]:
    """texts: what the document says of other instructions, which this one may call."""
    reader = Reader(text.replace("WAVE_MODE.IEEE", "WAVE_MODE"), texts)
    run = reader.block()
    if reader.peek():
        raise Unread(reader.peek())
    return run
