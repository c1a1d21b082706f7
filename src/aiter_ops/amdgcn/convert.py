"""Conversions to and from fp16, bf16, FP8 and FP4 (AMD, "CDNA3 Instruction Set Architecture" and "CDNA4 Instruction Set
Architecture", sections VOP1 and VOP3A).

A scaled conversion multiplies by (towards fp32, fp16, bf16) or divides by (from them) two to the exponent of an fp32 scale
before it rounds; the scale's sign and fraction mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import formats as fmt
from . import numbers as num
from .errors import Unsupported
from .parse import Instruction
from .scalar import FP16_OVFL
from .state import Waves
from .vector import result_bits, source, write16

_SMALL = {"fp8": (fmt.E4M3, fmt.E4M3_VALUES), "bf8": (fmt.E5M2, fmt.E5M2_VALUES)}


def _clamps(w: Waves) -> bool:
    return bool(w.mode & FP16_OVFL)


def _to_half(w: Waves, ins: Instruction) -> None:
    made = num.to_half(source(w, ins, 1, "f32"), _clamps(w))
    write16(w, ins, result_bits(w, ins, made, "f16"))


def _require_plain(ins: Instruction) -> None:
    if ins.encoding in ("dpp", "sdwa") or "clamp" in ins.mods:
        raise Unsupported(f"{ins.name} with {ins.encoding or 'clamp'}")


def _pair16(w: Waves, ins: Instruction) -> None:
    """Two fp32 numbers to two fp16 or bf16 ones."""
    _require_plain(ins)
    made = []
    for place in (1, 2):
        x = source(w, ins, place, "f32")
        if "bf16" in ins.name:
            made.append(fmt.to_bf16(x))
        else:
            made.append(num.to_half(x, _clamps(w)).view(np.uint16).astype(np.uint32))
    w.write(ins.operands[0], made[0] | (made[1] << np.uint32(16)))


def _from_bf16(w: Waves, ins: Instruction) -> None:
    if ins.encoding == "dpp":
        raise Unsupported(f"{ins.name} with dpp")
    op = ins.operands[1]
    x = fmt.from_bf16(source(w, ins, 1, "u16"))
    x = np.abs(x) if op.abs else x
    w.write(ins.operands[0], result_bits(w, ins, -x if op.neg else x, "f32"))


def _put(w: Waves, ins: Instruction, value: Any, width: int, place: int) -> None:
    """Into one half (byte) of the result; the others stay."""
    before = w.read(ins.operands[0])
    mask = np.uint32(((1 << width) - 1) << (width * place))
    w.write(ins.operands[0], (before & ~mask) | (value << np.uint32(width * place)))


def _to_fp8(w: Waves, ins: Instruction) -> None:
    """Two codes to the low half, or the high one with the last of op_sel (written [0,0,1])."""
    _require_plain(ins)
    form = _SMALL[ins.name.split("_")[3]][0][w.machine.fnuz]
    low, high = (form.rounded(source(w, ins, i, "f32"), _clamps(w)) for i in (1, 2))
    _put(w, ins, low | (high << np.uint32(8)), 16, ins.bits("op_sel", (0, 0, 0))[2])


def _from_fp8(w: Waves, ins: Instruction) -> None:
    codes = w.read(ins.operands[1])
    upper = ins.mods.get("src0_sel") == "WORD_1" or ins.bits("op_sel", (0,))[0]
    codes = codes >> 16 if upper else codes & 0xFFFF
    table = _SMALL[ins.name.rpartition("_")[2]][1][w.machine.fnuz].view(np.uint32)
    w.write(ins.operands[0], table[codes & 255], 0)
    w.write(ins.operands[0], table[codes >> 8], 1)


# --- scaled -----------------------------------------------------------------------------------------------------------


def _scale(w: Waves, ins: Instruction, place: int) -> Any:
    """2^(exponent - 127) of an fp32 scale, as fp64; NaN where the exponent is 255."""
    bits = source(w, ins, place, "f32").view(np.uint32)
    return fmt.e8m0((bits >> np.uint32(23)) & np.uint32(255))


def _numbers(w: Waves, ins: Instruction, kind: str) -> list[Any]:
    """The two numbers that a scaled conversion rounds, as fp64: two fp32 sources, or the halves of one."""
    if kind == "f32":
        return [source(w, ins, i, "f32").astype(np.float64) for i in (1, 2)]
    op = ins.operands[1]
    if op.neg or op.abs:
        raise Unsupported(f"signs of halves in {ins.name}")
    bits = w.read(op, 0, 16)
    halves = (bits & np.uint32(0xFFFF), bits >> np.uint32(16))
    if kind == "bf16":
        return [fmt.from_bf16(h).astype(np.float64) for h in halves]
    return [h.astype(np.uint16).view(np.float16).astype(np.float64) for h in halves]


def _narrowing(small: str, kind: str) -> Callable[[Waves, Instruction], None]:
    """v_cvt_scalef32_pk_{small}_{kind}: the entry of op_sel after the sources' chooses the half of the result, for FP4
    op_sel[2:3] the byte.
    """

    def run(w: Waves, ins: Instruction) -> None:
        _require_plain(ins)
        scale = _scale(w, ins, len(ins.operands) - 1)
        form = fmt.E2M1 if small == "fp4" else _SMALL[small][0][False]
        low, high = (form.rounded(x / scale, _clamps(w)) for x in _numbers(w, ins, kind))
        select = ins.bits("op_sel", (0, 0, 0, 0))
        if small == "fp4":
            _put(w, ins, low | (high << np.uint32(4)), 8, select[2] + 2 * select[3])
        else:
            _put(w, ins, low | (high << np.uint32(8)), 16, select[3 if kind == "f32" else 2])

    return run


def _widening(kind: str, small: str) -> Callable[[Waves, Instruction], None]:
    """v_cvt_scalef32_pk_{kind}_{small}: op_sel[0] chooses the half of the source, for FP4 op_sel[0:1] the byte."""
    table = fmt.E2M1_VALUES if small == "fp4" else _SMALL[small][1][False]
    width = 4 if small == "fp4" else 8

    def run(w: Waves, ins: Instruction) -> None:
        _require_plain(ins)
        select = ins.bits("op_sel", (0, 0, 0, 0))
        place = select[0] + 2 * select[1] if small == "fp4" else select[0]
        codes = w.read(ins.operands[1]) >> np.uint32(2 * width * place)
        scale = _scale(w, ins, 2)
        # exact in fp64
        low, high = (
            table[(codes >> np.uint32(width * i)) & np.uint32((1 << width) - 1)].astype(np.float64) * scale
            for i in (0, 1)
        )
        if kind == "f32":
            for i, value in enumerate((low, high)):
                w.write(ins.operands[0], value.astype(np.float32).view(np.uint32), i)
            return
        if kind == "f16":
            made = [num.to_half(x, _clamps(w)).view(np.uint16).astype(np.uint32) for x in (low, high)]
        else:
            # few bits: what fp32 cannot hold is far below bf16's smallest number
            made = [fmt.to_bf16(x.astype(np.float32)) for x in (low, high)]
        w.write(ins.operands[0], made[0] | (made[1] << np.uint32(16)))

    return run


_KINDS = ("f32", "f16", "bf16")
_SMALLS = ("fp8", "bf8", "fp4")
TABLE: dict[str, Callable[[Waves, Instruction], None]] = {
    "v_cvt_f16_f32": _to_half,
    "v_cvt_f32_bf16": _from_bf16,
    "v_cvt_pk_f16_f32": _pair16,
    "v_cvt_pk_bf16_f32": _pair16,
    **dict.fromkeys(("v_cvt_pk_fp8_f32", "v_cvt_pk_bf8_f32"), _to_fp8),
    **dict.fromkeys(("v_cvt_pk_f32_fp8", "v_cvt_pk_f32_bf8"), _from_fp8),
    **{f"v_cvt_scalef32_pk_{s}_{k}": _narrowing(s, k) for s in _SMALLS for k in _KINDS},
    **{f"v_cvt_scalef32_pk_{k}_{s}": _widening(k, s) for s in _SMALLS for k in _KINDS},
}
