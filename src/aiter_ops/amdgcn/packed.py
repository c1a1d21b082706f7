"""Packed instructions: two fp32 or fp16 results, and fused multiply-add of mixed fp16 and fp32
(AMD, "CDNA3 Instruction Set Architecture", section VOP3P).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import numbers as num
from .errors import Unsupported
from .halves import half_bits, lower, upper
from .parse import Instruction, Operand
from .scalar import FP16_OVFL
from .state import Waves


def _outermost(function: Any, a: Any, b: Any) -> Any:
    """IEEE 754-2019: a NaN gives NaN, and -0 is below +0."""
    a, b = np.broadcast_arrays(a, b)
    bits = [np.ascontiguousarray(x).view(np.uint32) for x in (a, b)]
    zero = bits[0] & bits[1] if function is np.maximum else bits[0] | bits[1]
    return np.where((a == 0) & (b == 0), zero.view(np.float32), function(a, b))


F32: dict[str, Callable[..., Any]] = {
    "v_pk_add_f32": lambda a, b: a + b,
    "v_pk_mul_f32": lambda a, b: a * b,
    "v_pk_fma_f32": num.fma32,
}
F16: dict[str, Callable[..., Any]] = {
    # fp32 holds sums and products of fp16 numbers well enough (24 ≥ 2 · 11 + 2) to round once more
    "v_pk_add_f16": lambda a, b: a + b,
    "v_pk_mul_f16": lambda a, b: a * b,
    "v_pk_fma_f16": num.fma_of_halves,
    "v_pk_maximum3_f16": lambda a, b, c: _outermost(np.maximum, _outermost(np.maximum, a, b), c),
    "v_pk_minimum3_f16": lambda a, b, c: _outermost(np.minimum, _outermost(np.minimum, a, b), c),
}
"""Of fp32 arrays that hold fp16 numbers; what they give is rounded to fp16."""


def _word(w: Waves, op: Operand, high: int) -> Any:
    """One half of a 64-bit source; constants have a low half only."""
    if high and op.kind in ("int", "float") and op.value != 0:
        raise Unsupported(f"the high half of the constant {op.text}")
    return w.read(op, 0 if op.kind in ("int", "float") else high)


def _halves(w: Waves, ins: Instruction, convert: Callable[[Operand, int], Any]) -> list[tuple[Any, ...]]:
    """The sources of the low and of the high result: op_sel and op_sel_hi choose halves, neg_lo and neg_hi negate."""
    count = len(ins.operands) - 1
    out = []
    for select, negate, default in (("op_sel", "neg_lo", 0), ("op_sel_hi", "neg_hi", 1)):
        chosen, negated = ins.bits(select, (default,) * count), ins.bits(negate, (0,) * count)
        values = [convert(op, high) for op, high in zip(ins.operands[1:], chosen, strict=True)]
        out.append(tuple(-v if minus else v for v, minus in zip(values, negated, strict=True)))
    return out


def _require_unclamped(ins: Instruction) -> None:
    if "clamp" in ins.mods:
        raise Unsupported("clamp of a packed result")


def _packed32(w: Waves, ins: Instruction) -> None:
    _require_unclamped(ins)
    if not ins.mods and all(op.kind in "vs" for op in ins.operands[1:]):
        # both results at once, in place where they are read
        made = F32[ins.name](*[_pair(w, op) for op in ins.operands[1:]]).view(np.uint32)
    else:
        parts = _halves(w, ins, lambda op, h: _word(w, op, h).view(np.float32))
        made = [np.ascontiguousarray(F32[ins.name](*part)).view(np.uint32) for part in parts]
    w.write(ins.operands[0], made[0], 0)
    w.write(ins.operands[0], made[1], 1)


def _pair(w: Waves, op: Operand) -> Any:
    """[2, n, 64 or 1]: a 64-bit register as two fp32 numbers."""
    words = (w.v if op.kind == "v" else w.s[:, :, None])[op.index : op.index + 2]
    return words.view(np.float32)


def _half(w: Waves, op: Operand, high: int) -> Any:
    """One half of a source as fp32."""
    return (upper if high else lower)(w.read(op, 0, 16))


def _packed16(w: Waves, ins: Instruction) -> None:
    _require_unclamped(ins)
    parts = _halves(w, ins, lambda op, h: _half(w, op, h))
    low, high = (half_bits(F16[ins.name](*part)) for part in parts)
    if w.mode & FP16_OVFL:
        low, high = (_held(bits, part) for bits, part in zip((low, high), parts, strict=True))
    high <<= np.uint32(16)
    w.write(ins.operands[0], low | high)


def _held(bits: Any, sources: tuple[Any, ...]) -> Any:
    made = num.clamped_half(bits.astype(np.uint16).view(np.float16), *sources)
    return made.view(np.uint16).astype(np.uint32)


def _pk_mov(w: Waves, ins: Instruction) -> None:
    """The low result from the first source, the high one from the second; op_sel chooses their halves."""
    low, high = ins.bits("op_sel", (0, 0))
    made = [np.array(_word(w, ins.operands[1], low)), np.array(_word(w, ins.operands[2], high))]
    w.write(ins.operands[0], made[0], 0)
    w.write(ins.operands[0], made[1], 1)


def _mixed(w: Waves, ins: Instruction) -> list[Any]:
    """Sources that op_sel_hi marks are fp16 halves, the others fp32."""
    kinds, high = ins.bits("op_sel_hi", (0, 0, 0)), ins.bits("op_sel", (0, 0, 0))
    values = []
    for op, half, part in zip(ins.operands[1:], kinds, high, strict=True):
        x = _half(w, op, part) if half else w.read(op).view(np.float32)
        x = np.abs(x) if op.abs else x
        values.append(-x if op.neg else x)
    return values


def _fma_mix(w: Waves, ins: Instruction) -> None:
    w.write(ins.operands[0], np.ascontiguousarray(num.fma32(*_mixed(w, ins))).view(np.uint32))


def _fma_mix_half(w: Waves, ins: Instruction) -> None:
    """The sum is rounded to fp32 and then to fp16, as the two steps are written; the other half of the result stays."""
    made = num.to_half(num.fma32(*_mixed(w, ins)), bool(w.mode & FP16_OVFL))
    bits, before = made.view(np.uint16).astype(np.uint32), w.read(ins.operands[0])
    if ins.name == "v_fma_mixlo_f16":
        w.write(ins.operands[0], (before & np.uint32(0xFFFF0000)) | bits)
    else:
        w.write(ins.operands[0], (before & 0xFFFF) | (bits << 16))


TABLE = {
    **dict.fromkeys(F32, _packed32),
    **dict.fromkeys(F16, _packed16),
    "v_pk_mov_b32": _pk_mov,
    "v_fma_mix_f32": _fma_mix,
    "v_fma_mixlo_f16": _fma_mix_half,
    "v_fma_mixhi_f16": _fma_mix_half,
}
