"""AMD's instruction pseudocode, evaluated for one lane in exact arithmetic: what the emulator is compared with.

The text is that of AMD's ISA documents as the package tinygrad carries it. Functions that it names and does not define
(conversions) are defined here, by the definition of the formats and with fractions.
"""

from __future__ import annotations

import bisect
import math
import re
import struct
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

TOKEN = re.compile(
    r"\s*(//[^\n]*|\d+'[FIUB]\b(?=\()|\d+'[FIUB]\b|\d+'0x[0-9a-fA-F]+U?|\d+'\d+U?|0x[0-9a-fA-F]+(?:ULL|LL|U)?"
    r"|\d+\.\d+F?|\d+(?:ULL|LL|U|F)?|[A-Za-z_]\w*|\*\*|<<|>>|<=|>=|==|!=|<>|&&|\|\||[-+*]=|[-+*/&|^~!<>=?:;,.(){}\[\]])"
)


class Value(NamedTuple):
    """bits of `width`, as kind: u, i, f (IEEE of that width), bf (bfloat16). exact: a number that no format holds yet."""

    bits: int
    width: int
    kind: str
    exact: Fraction | None = None


def number(v: Value) -> Any:
    """An int, or a float."""
    if v.kind == "f":
        code = {16: ("<H", "<e"), 32: ("<I", "<f"), 64: ("<Q", "<d")}[v.width]
        return struct.unpack(code[1], struct.pack(code[0], v.bits))[0]
    if v.kind == "bf":
        return struct.unpack("<f", struct.pack("<I", v.bits << 16))[0]
    return v.bits - (1 << v.width) if v.kind == "i" and v.bits >> (v.width - 1) else v.bits


def whole(x: int, width: int, kind: str) -> Value:
    return Value(x & ((1 << width) - 1), width, kind)


FORMATS = {
    (16, "f"): (11, -14, 15),
    (32, "f"): (24, -126, 127),
    (64, "f"): (53, -1022, 1023),
    (16, "bf"): (8, -126, 127),
}
"""Significant bits, exponents of the least normal and of the largest number."""


def rounded(x: Any, width: int, kind: str) -> Value:
    """A float or fraction to the nearest number of a format, ties to even."""
    precision, least, most = FORMATS[width, kind]
    fraction, exponents = precision - 1, width - precision
    if isinstance(x, float) and not math.isfinite(x):
        top = ((1 << exponents) - 1) << fraction
        if math.isnan(x):
            return Value(top | 1 << (fraction - 1), width, kind)
        return Value(top | (x < 0) << (width - 1), width, kind)
    negative = math.copysign(1, x) < 0 if isinstance(x, float) else x < 0
    top, bottom = abs(x).as_integer_ratio()
    exponent = least
    if top:
        exponent = top.bit_length() - bottom.bit_length()
        exponent -= top << max(-exponent, 0) < bottom << max(exponent, 0)
        exponent = max(exponent, least)
    shift = fraction - exponent
    units, rest = divmod(top << max(shift, 0), bottom << max(-shift, 0))
    twice = 2 * rest - (bottom << max(-shift, 0))
    units += twice > 0 or (twice == 0 and units % 2)
    code = ((exponent - least) << fraction) + units
    code = min(code, (most - least + 2) << fraction)
    return Value(code | negative << (width - 1), width, kind)


def real(x: float) -> Value:
    return rounded(x, 64, "f")


def exactly(v: Value) -> Any:
    """A fraction where the number is finite and not a zero (whose sign would be lost)."""
    if v.exact is not None:
        return v.exact
    x = number(v)
    return Fraction(x) if not isinstance(x, float) or (math.isfinite(x) and x != 0) else x


def arithmetic(op: str, a: Value, b: Value) -> Value:
    if "f" in (a.kind, b.kind) or "bf" in (a.kind, b.kind):
        width = max(x.width for x in (a, b) if x.kind in ("f", "bf"))
        x, y = exactly(a), exactly(b)
        if isinstance(x, float) or isinstance(y, float):
            with np.errstate(all="ignore"):
                p, q = (np.float64(float(z)) for z in (x, y))
                return rounded(float(p + q if op == "+" else p - q if op == "-" else p * q), width, "f")
        made = x + y if op == "+" else x - y if op == "-" else x * y
        return rounded(made if made else 0.0, width, "f")
    width = max(32, a.width, b.width)
    kind = "u" if "u" in [x.kind for x in (a, b) if x.width == width] else "i"
    x, y = number(a), number(b)
    return whole(x + y if op == "+" else x - y if op == "-" else x * y, width, kind)


def bitwise(op: str, a: Value, b: Value) -> Value:
    width = max(a.width, b.width)
    x, y = (number(v) & ((1 << width) - 1) if v.kind == "i" else v.bits for v in (a, b))
    kind = "u" if "u" in [v.kind for v in (a, b) if v.width == width] else "i"
    return whole(x & y if op == "&" else x | y if op == "|" else x ^ y, width, kind)


def shifted(op: str, a: Value, b: Value) -> Value:
    return whole(number(a) << b.bits if op == "<<" else number(a) >> b.bits, a.width, a.kind)


def truth(x: bool) -> Value:
    return Value(int(x), 1, "u")


def fused(a: Value, b: Value, c: Value) -> Value:
    width = a.width
    x, y, z = (number(v) for v in (a, b, c))
    if all(math.isfinite(v) for v in (x, y, z)):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        if exact:
            return rounded(exact, width, "f")
        product = math.copysign(1, x) * math.copysign(1, y)
        negative = product < 0 and math.copysign(1, z) < 0 and x * y == 0 and z == 0
        return rounded(-0.0 if negative else 0.0, width, "f")
    product = math.nan if (math.isinf(x) and y == 0) or (x == 0 and math.isinf(y)) else x * y
    if math.isfinite(x) and math.isfinite(y):
        product = 0.0
    return rounded(product + z, width, "f")


def small_values(fraction: int, exponents: int, bias: int, special: str) -> dict[int, float]:
    """By code, of the formats with 8 or 4 bits. special: what the largest exponent stands for."""
    width, out = 1 + exponents + fraction, {}
    for code in range(1 << width):
        e, m = code >> fraction & ((1 << exponents) - 1), code & ((1 << fraction) - 1)
        x = math.ldexp((1 << fraction) + m if e else m, max(e, 1) - bias - fraction)
        top = e == (1 << exponents) - 1
        if special == "ieee" and top:
            x = math.nan if m else math.inf
        if special == "nan" and top and m == (1 << fraction) - 1:
            x = math.nan
        out[code] = -x if code >> (width - 1) else x
    return out


SMALL = {"fp8": small_values(3, 4, 7, "nan"), "bf8": small_values(2, 5, 15, "ieee"), "fp4": small_values(1, 2, 1, "")}


NUMBERS = {
    kind: [Fraction(x) for x in list(v.values())[: len(v) // 2] if math.isfinite(x)] for kind, v in SMALL.items()
}
"""The finite numbers from zero up, which are those of the codes 0, 1, …"""


def to_small(x: Any, kind: str) -> int | None:
    """The nearest code, ties to the even one; None where the pseudocode's function does not say (beyond the range)."""
    numbers, half = NUMBERS[kind], len(SMALL[kind]) // 2
    if isinstance(x, float) and not math.isfinite(x):
        return None
    magnitude = abs(Fraction(x))
    if magnitude > numbers[-1] and kind != "fp4":
        return None
    code = bisect.bisect_right(numbers, magnitude) - 1
    if code + 1 < len(numbers):
        below, above = magnitude - numbers[code], numbers[code + 1] - magnitude
        code += above < below or (above == below and code % 2 == 1)
    negative = math.copysign(1, x) < 0 if isinstance(x, float) else x < 0
    return code | (half if negative else 0)


class Undefined(Exception):
    """The document does not say."""


def saturated(x: float, low: int, high: int, kind: str) -> Value:
    return whole(0 if math.isnan(x) else int(max(low, min(high, x))), 32, kind)


def scale_of(v: Value) -> Fraction:
    if v.bits & 255 == 255:
        raise Undefined
    return Fraction(2) ** ((v.bits & 255) - 127)


def conversion(name: str, args: list[Value]) -> Value:
    """x_to_y and x_to_y_scale."""
    source, _, target = name.removesuffix("_scale").partition("_to_")
    if name.endswith("_scale"):
        factor = scale_of(args[1])
    x: Any = SMALL[source][args[0].bits] if source in SMALL else number(args[0])
    if target in SMALL:
        if name.endswith("_scale") and math.isfinite(x) and x != 0:
            x = Fraction(x) / factor
        code = to_small(x, target)
        if code is None:
            raise Undefined
        return Value(code, 4 if target == "fp4" else 8, "u")
    if name.endswith("_scale"):
        x = Fraction(x) * factor if math.isfinite(x) and x != 0 else x
    if target in ("i32", "u32"):
        low, high = (-(2**31), 2**31 - 1) if target == "i32" else (0, 2**32 - 1)
        return saturated(x, low, high, target[0])
    kind, width = ("bf", 16) if target == "bf16" else ("f", int(target[1:]))
    return rounded(Fraction(x) if isinstance(x, int) and x else float(x) if isinstance(x, int) else x, width, kind)


def isnan(v: Value) -> bool:
    return math.isnan(number(v))


def signalling(v: Value) -> bool:
    return isnan(v) and not v.bits >> (FORMATS[v.width, "f"][0] - 2) & 1


def extreme(a: Value, b: Value, largest: bool) -> Value:
    """v_maximum, v_minimum: IEEE 754-2019."""
    if isnan(a) or isnan(b):
        return rounded(math.nan, a.width, "f")
    order = [(number(v), not v.bits >> (a.width - 1)) for v in (a, b)]
    first = order[0] >= order[1] if largest else order[0] <= order[1]
    return a if first else b


def cut(v: Value, function: Any) -> Value:
    x = number(v)
    return rounded(math.copysign(float(function(x)), x), v.width, "f") if math.isfinite(x) else v


def magnitude(v: Value) -> Value:
    if v.kind == "f":
        return v._replace(bits=v.bits & ((1 << (v.width - 1)) - 1))
    return whole(abs(number(v)), v.width, v.kind)


def from_bit(v: Value, width: int) -> Value:
    if width > 32:
        raise Undefined
    return whole((v.bits & ((1 << width) - 1)) - ((v.bits >> (width - 1) & 1) << width) if width else 0, 32, "i")


FUNCTIONS: dict[str, Any] = {
    "fma": fused,
    "isNAN": lambda v: truth(isnan(v)),
    "isQuietNAN": lambda v: truth(isnan(v) and not signalling(v)),
    "isSignalNAN": lambda v: truth(signalling(v)),
    "cvtToQuietNAN": lambda v: Value(v.bits | 1 << (FORMATS[v.width, "f"][0] - 2), v.width, "f"),
    "exponent": lambda v: whole(v.bits >> 23 & 255, 32, "i"),
    "sign": lambda v: Value(v.bits >> (v.width - 1), 1, "u"),
    "abs": magnitude,
    "signext": lambda v: whole(number(v), 64, "i"),
    "signext_from_bit": lambda v, n: from_bit(v, n.bits),
    "trunc": lambda v: cut(v, math.trunc),
    "floor": lambda v: cut(v, math.floor),
    "fract": lambda v: rounded(number(v) - math.floor(number(v)), v.width, "f"),
    "isEven": lambda v: truth(number(v) % 2 == 0),
    "v_maximum_f32": lambda a, b: extreme(a, b, True),
    "v_minimum_f32": lambda a, b: extreme(a, b, False),
    "v_maximum3_f16": lambda a, b, c: extreme(extreme(a, b, True), c, True),
    "v_minimum3_f16": lambda a, b, c: extreme(extreme(a, b, False), c, False),
}
