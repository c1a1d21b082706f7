"""Vector instructions on single lanes: integer, fp16, fp32 arithmetic, comparisons, conversions
(AMD, "CDNA3 Instruction Set Architecture", chapter 6 and sections VOP1, VOP2, VOP3A, VOP3B, VOPC).

`OPS` maps a mnemonic to the types of its result and sources, as one string, and a function of arrays. Modifiers, DPP,
SDWA and EXEC are the same for all and handled around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import numbers as num
from .errors import Unsupported
from .halves import narrowed, widened
from .lanes import dpp, sdwa_result, sdwa_source
from .parse import VCC, Instruction, Operand
from .permute import perm
from .scalar import FP16_OVFL, reversed_bits
from .state import Waves

_NUMPY: dict[str, Any] = {"i32": np.int32, "f32": np.float32, "i64": np.int64, "u64": np.uint64, "f64": np.float64}
_NUMPY |= {"u16": np.uint16, "i16": np.int16, "f16": np.float16}


def source(w: Waves, ins: Instruction, place: int, kind: str, raw: Any = None) -> Any:
    """Source number `place` of the instruction's operands as an array of its type, modifiers applied."""
    op = ins.operands[place]
    if kind.endswith("64"):
        value = w.read64(op)
        return _signed(value.view(_NUMPY[kind]), op) if kind != "u64" else value
    width = int(kind[1:])
    bits = w.read(op, 0, width) if raw is None else raw
    if ins.encoding == "sdwa":
        select = ins.mods.get(f"src{place - _first(ins)}_sel", "DWORD")
        bits = sdwa_source(bits, select, op.sext)
    if width == 16:
        high = ins.bits("op_sel", (0, 0, 0, 0))[place - _first(ins)]
        value = (bits >> 16 if high else bits).astype(np.uint16).view(_NUMPY[kind])
    else:
        value = bits if kind == "u32" else bits.view(_NUMPY[kind])
    return _signed(value, op) if kind[0] == "f" else value


def _first(ins: Instruction) -> int:
    """The place of source 0: after the result, and after a second, scalar one."""
    return 2 if "_co_" in ins.name or ins.name in _SCALAR_TOO else 1


_SCALAR_TOO = ("v_div_scale_f32", "v_mad_u64_u32", "v_mad_i64_i32")


def _signed(value: Any, op: Operand) -> Any:
    if op.abs:
        value = np.abs(value)
    return -value if op.neg else value


def result_bits(w: Waves, ins: Instruction, value: Any, kind: str) -> Any:
    """A result as 32 bits; clamp and output scaling applied. 16-bit results have zeros above them."""
    if "omod" in ins.mods or "mul" in ins.mods or "div" in ins.mods:
        raise Unsupported("output modifiers")
    if "clamp" in ins.mods:
        if kind[0] != "f":
            raise Unsupported("clamp of an integer")
        value = np.where(np.isnan(value), value.dtype.type(0), np.clip(value, 0, 1))
    value = np.ascontiguousarray(value)
    if kind.endswith("16"):
        return value.astype(_NUMPY[kind], copy=False).view(np.uint16).astype(np.uint32)
    return value.astype(_NUMPY.get(kind, np.uint32), copy=False).view(np.uint32)


def write16(w: Waves, ins: Instruction, bits: Any) -> None:
    """16 bits to the half that op_sel says. The other half stays with the upper one and on RDNA, else it becomes 0."""
    if ins.encoding == "sdwa":
        w.write(ins.operands[0], sdwa_result(w, ins, bits))
        return
    # the entry of the result follows those of the sources
    high = bool(ins.bits("op_sel", (0, 0, 0, 0))[len(ins.operands) - 1])
    if high or w.keeps_halves:
        w.write_half(ins.operands[0], bits, high)
    else:
        w.write(ins.operands[0], bits)


def _saturated(x: Any, low: float, high: float, kind: Any) -> Any:
    """fp32 to an integer: truncated, held within the range, NaN to 0."""
    wide = np.where(np.isnan(x), 0, np.clip(np.trunc(x.astype(np.float64)), low, high))
    return wide.astype(np.int64).astype(kind)


def _u64(x: Any) -> Any:
    return x.astype(np.uint64)


def _low(x: Any) -> Any:
    return (x & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _bfe_u(a: Any, b: Any, c: Any) -> Any:
    return (a >> (b & 31)) & ((np.uint32(1) << (c & 31)) - np.uint32(1))


def _bfe_i(a: Any, b: Any, c: Any) -> Any:
    width = c & 31
    sign = np.where(width > 0, np.uint32(1) << (np.maximum(width, 1) - np.uint32(1)), np.uint32(0))
    # bits from beyond the top are copies of it
    shifted = (a.view(np.int32) >> (b & 31).astype(np.int32)).view(np.uint32)
    return ((shifted & ((np.uint32(1) << width) - np.uint32(1))) ^ sign) - sign


def _i24(x: Any) -> Any:
    return ((x & 0xFFFFFF) ^ 0x800000).astype(np.int64) - 0x800000


def _wrap(x: Any) -> Any:
    return (x & 0xFFFFFFFF).astype(np.uint32)


def _shift_i(a: Any, b: Any) -> Any:
    return b >> (a & 31).astype(np.int32)


def _classes(x: Any, wanted: Any) -> Any:
    bits = np.ascontiguousarray(x).view(np.uint32)
    exponent, sign, rest = (bits >> 23) & 255, bits >> 31, bits & 0x7FFFFF
    special = np.where(rest != 0, np.where(rest & 0x400000, 1, 0), np.where(sign, 2, 9))
    plain = np.where(
        exponent > 0, np.where(sign, 3, 8), np.where(rest != 0, np.where(sign, 4, 7), np.where(sign, 5, 6))
    )
    return ((wanted >> np.where(exponent == 255, special, plain).astype(np.uint32)) & 1).astype(bool)


_U3 = "u32 u32 u32 u32"
OPS: dict[str, tuple[str, Callable[..., Any]]] = {
    "v_mov_b32": ("u32 u32", lambda a: a),
    "v_accvgpr_read_b32": ("u32 u32", lambda a: a),
    "v_accvgpr_write_b32": ("u32 u32", lambda a: a),
    "v_not_b32": ("u32 u32", lambda a: ~a),
    "v_bfrev_b32": ("u32 u32", reversed_bits),
    "v_add_u32": ("u32 u32 u32", lambda a, b: a + b),
    "v_sub_u32": ("u32 u32 u32", lambda a, b: a - b),
    "v_subrev_u32": ("u32 u32 u32", lambda a, b: b - a),
    "v_mul_lo_u32": ("u32 u32 u32", lambda a, b: a * b),
    "v_mul_hi_u32": ("u32 u32 u32", lambda a, b: (_u64(a) * _u64(b) >> np.uint64(32)).astype(np.uint32)),
    "v_mul_hi_i32": ("i32 i32 i32", lambda a, b: ((a.astype(np.int64) * b) >> 32).astype(np.int32)),
    "v_mul_u32_u24": ("u32 u32 u32", lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF)),
    "v_mul_i32_i24": ("u32 u32 u32", lambda a, b: _wrap(_i24(a) * _i24(b))),
    "v_mad_u32_u24": (_U3, lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c),
    "v_mad_i32_i24": (_U3, lambda a, b, c: _wrap(_i24(a) * _i24(b) + c)),
    "v_and_b32": ("u32 u32 u32", lambda a, b: a & b),
    "v_or_b32": ("u32 u32 u32", lambda a, b: a | b),
    "v_xor_b32": ("u32 u32 u32", lambda a, b: a ^ b),
    "v_lshlrev_b32": ("u32 u32 u32", lambda a, b: b << (a & 31)),
    "v_lshrrev_b32": ("u32 u32 u32", lambda a, b: b >> (a & 31)),
    "v_ashrrev_i32": ("i32 u32 i32", _shift_i),
    "v_lshlrev_b64": ("u64 u32 u64", lambda a, b: b << _u64(a & 63)),
    "v_lshrrev_b64": ("u64 u32 u64", lambda a, b: b >> _u64(a & 63)),
    "v_ashrrev_i64": ("i64 u32 i64", lambda a, b: b >> (a & 63).astype(np.int64)),
    "v_mov_b64": ("u64 u64", lambda a: a),
    "v_lshl_add_u64": ("u64 u64 u32 u64", lambda a, b, c: (a << _u64(b & 7)) + c),
    "v_add3_u32": (_U3, lambda a, b, c: a + b + c),
    "v_lshl_add_u32": (_U3, lambda a, b, c: (a << (b & 31)) + c),
    "v_add_lshl_u32": (_U3, lambda a, b, c: (a + b) << (c & 31)),
    "v_lshl_or_b32": (_U3, lambda a, b, c: (a << (b & 31)) | c),
    "v_and_or_b32": (_U3, lambda a, b, c: (a & b) | c),
    "v_or3_b32": (_U3, lambda a, b, c: a | b | c),
    "v_xad_u32": (_U3, lambda a, b, c: (a ^ b) + c),
    "v_bfi_b32": (_U3, lambda a, b, c: (a & b) | (~a & c)),
    "v_bfe_u32": (_U3, _bfe_u),
    "v_bfe_i32": (_U3, _bfe_i),
    "v_perm_b32": (_U3, perm),
    "v_alignbit_b32": (_U3, lambda a, b, c: _low(((_u64(a) << np.uint64(32)) | _u64(b)) >> _u64(c & 31))),
    "v_alignbyte_b32": (_U3, lambda a, b, c: _low(((_u64(a) << np.uint64(32)) | _u64(b)) >> _u64((c & 3) * 8))),
    "v_bcnt_u32_b32": ("u32 u32 u32", lambda a, b: np.bitwise_count(a).astype(np.uint32) + b),
    **{f"v_max_{t}": (f"{t} {t} {t}", np.maximum) for t in ("i32", "u32", "i16", "u16")},
    **{f"v_min_{t}": (f"{t} {t} {t}", np.minimum) for t in ("i32", "u32", "i16", "u16")},
    **{f"v_max3_{t}": (f"{t} {t} {t} {t}", lambda a, b, c: np.maximum(np.maximum(a, b), c)) for t in ("i32", "u32")},
    **{f"v_min3_{t}": (f"{t} {t} {t} {t}", lambda a, b, c: np.minimum(np.minimum(a, b), c)) for t in ("i32", "u32")},
    **{
        f"v_med3_{t}": (
            f"{t} {t} {t} {t}",
            lambda a, b, c: np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c)),
        )
        for t in ("i32", "u32")
    },
    "v_add_u16": ("u16 u16 u16", lambda a, b: a + b),
    "v_sub_u16": ("u16 u16 u16", lambda a, b: a - b),
    "v_mul_lo_u16": ("u16 u16 u16", lambda a, b: a * b),
    "v_lshlrev_b16": ("u16 u16 u16", lambda a, b: b << (a & 15)),
    "v_lshrrev_b16": ("u16 u16 u16", lambda a, b: b >> (a & 15)),
    "v_ashrrev_i16": ("i16 u16 i16", lambda a, b: b >> (a & 15).astype(np.int16)),
    "v_add_f32": ("f32 f32 f32", lambda a, b: a + b),
    "v_sub_f32": ("f32 f32 f32", lambda a, b: a - b),
    "v_subrev_f32": ("f32 f32 f32", lambda a, b: b - a),
    "v_mul_f32": ("f32 f32 f32", lambda a, b: a * b),
    "v_max_f32": ("f32 f32 f32", num.max32),
    "v_min_f32": ("f32 f32 f32", num.min32),
    "v_max3_f32": ("f32 f32 f32 f32", lambda a, b, c: num.max32(num.max32(a, b), c)),
    "v_min3_f32": ("f32 f32 f32 f32", lambda a, b, c: num.min32(num.min32(a, b), c)),
    "v_med3_f32": ("f32 f32 f32 f32", num.med32),
    "v_fma_f32": ("f32 f32 f32 f32", num.fma32),
    "v_fmamk_f32": ("f32 f32 f32 f32", lambda a, k, b: num.fma32(a, k, b)),
    "v_fmaak_f32": ("f32 f32 f32 f32", num.fma32),
    "v_maximum3_f32": ("f32 f32 f32 f32", num.maximum3),
    "v_minimum3_f32": ("f32 f32 f32 f32", num.minimum3),
    "v_mad_f32": ("f32 f32 f32 f32", num.mad32),
    "v_madmk_f32": ("f32 f32 f32 f32", num.mad32),
    "v_madak_f32": ("f32 f32 f32 f32", num.mad32),
    "v_div_fixup_f32": ("f32 f32 f32 f32", num.div_fixup),
    "v_rcp_f32": ("f32 f32", num.reciprocal),
    "v_rcp_iflag_f32": ("f32 f32", num.reciprocal),
    "v_rsq_f32": ("f32 f32", num.rsqrt),
    "v_sqrt_f32": ("f32 f32", num.sqrt),
    "v_exp_f32": ("f32 f32", num.exp2),
    "v_log_f32": ("f32 f32", num.log2),
    "v_trunc_f32": ("f32 f32", np.trunc),
    "v_floor_f32": ("f32 f32", np.floor),
    "v_ceil_f32": ("f32 f32", np.ceil),
    "v_rndne_f32": ("f32 f32", np.rint),
    "v_ldexp_f32": (
        "f32 f32 i32",
        lambda a, b: np.ldexp(a.astype(np.float64), np.clip(b, -400, 400)).astype(np.float32),
    ),
    "v_cvt_f32_i32": ("f32 i32", lambda a: a.astype(np.float32)),
    "v_cvt_f32_u32": ("f32 u32", lambda a: a.astype(np.float32)),
    "v_cvt_i32_f32": ("i32 f32", lambda a: _saturated(a, -(2.0**31), 2.0**31 - 1, np.int32)),
    "v_cvt_u32_f32": ("u32 f32", lambda a: _saturated(a, 0, 2.0**32 - 1, np.uint32)),
    **{f"v_cvt_f32_ubyte{i}": ("f32 u32", lambda a, i=i: ((a >> (8 * i)) & 255).astype(np.float32)) for i in range(4)},
    "v_cvt_f32_f16": ("f32 f16", widened),
    # fp32 holds sums and products of fp16 numbers well enough (24 ≥ 2 · 11 + 2) to round once more
    "v_add_f16": ("f16 f16 f16", lambda a, b: narrowed(widened(a) + widened(b))),
    "v_sub_f16": ("f16 f16 f16", lambda a, b: narrowed(widened(a) - widened(b))),
    "v_mul_f16": ("f16 f16 f16", lambda a, b: narrowed(widened(a) * widened(b))),
    "v_fma_f16": ("f16 f16 f16 f16", num.fma16),
    "v_pack_b32_f16": ("u32 u16 u16", lambda a, b: a.astype(np.uint32) | (b.astype(np.uint32) << 16)),
}

RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lg": lambda a, b: (a < b) | (a > b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "neq": lambda a, b: ~(a == b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "nlt": lambda a, b: ~(a < b),
    "nle": lambda a, b: ~(a <= b),
    "ngt": lambda a, b: ~(a > b),
    "nge": lambda a, b: ~(a >= b),
}
_INTEGER = ("eq", "ne", "lt", "le", "gt", "ge")
COMPARISONS = {
    f"v_cmp_{relation}_{kind}": (relation, kind)
    for kind in ("f16", "f32", "f64", "i16", "u16", "i32", "u32", "i64", "u64")
    for relation in (_INTEGER if kind[0] != "f" else [r for r in RELATIONS if r != "ne"])
}


def plain(types: str, function: Callable[..., Any]) -> Callable[[Waves, Instruction], None]:
    """What runs an instruction of these types (of its result and sources), without side effects."""
    out, *kinds = types.split()

    def run(w: Waves, ins: Instruction) -> None:
        _run_plain(w, ins, out, kinds, function)

    return run


def _run_plain(w: Waves, ins: Instruction, out: str, kinds: list[str], function: Callable[..., Any]) -> None:
    if ins.encoding == "dpp":
        moved, where = dpp(w, ins, w.read(ins.operands[1]))
        values = [source(w, ins, 1, kinds[0], moved)] + [source(w, ins, 1 + i, k) for i, k in enumerate(kinds) if i]
        if out.endswith("16"):
            raise Unsupported(f"{ins.name} with DPP")
        w.write(ins.operands[0], result_bits(w, ins, function(*values), out), where=where)
        return
    values = [source(w, ins, 1 + i, kind) for i, kind in enumerate(kinds)]
    value = function(*values)
    if out == "f16" and w.mode & FP16_OVFL:
        value = num.clamped_half(value, *values)
    if out.endswith("64"):
        w.write64(ins.operands[0], value.view(np.uint64))
        return
    if ins.name == "v_sub_u32" and "clamp" in ins.mods:
        a, b = (source(w, ins, i, "u32") for i in (1, 2))
        w.write(ins.operands[0], np.where(a > b, a - b, np.uint32(0)))
        return
    bits = result_bits(w, ins, value, out)
    if out.endswith("16"):
        write16(w, ins, bits)
    else:
        w.write(ins.operands[0], sdwa_result(w, ins, bits) if ins.encoding == "sdwa" else bits)


def _compare(w: Waves, ins: Instruction) -> None:
    relation, kind = COMPARISONS[ins.name]
    w.set_lanes(ins.operands[0], RELATIONS[relation](source(w, ins, 1, kind), source(w, ins, 2, kind)))


def _class(w: Waves, ins: Instruction) -> None:
    w.set_lanes(ins.operands[0], _classes(source(w, ins, 1, "f32"), source(w, ins, 2, "u32")))


def _cndmask(w: Waves, ins: Instruction) -> None:
    """The second source where the mask's bit is set, else the first. Negation and |·| are of fp32."""
    if ins.encoding == "dpp":
        raise Unsupported("v_cndmask_b32 with DPP")
    a, b = (source(w, ins, i, "f32" if _modified(ins.operands[i]) else "u32").view(np.uint32) for i in (1, 2))
    bits = np.where(w.lanes(ins.operands[3]), b, a)
    w.write(ins.operands[0], sdwa_result(w, ins, bits) if ins.encoding == "sdwa" else bits)


def _modified(op: Operand) -> bool:
    return op.neg or op.abs


def _fmac(w: Waves, ins: Instruction) -> None:
    kind = ins.name[-3:]
    if ins.encoding in ("dpp", "sdwa") or (kind == "f16" and w.mode & FP16_OVFL):
        raise Unsupported(f"{ins.name} with {ins.encoding or 'FP16_OVFL'}")
    a, b, c = (source(w, ins, i, kind) for i in (1, 2, 0))
    if kind == "f32":
        w.write(ins.operands[0], result_bits(w, ins, num.fma32(a, b, c), kind))
    else:
        write16(w, ins, result_bits(w, ins, num.fma16(a, b, c), kind))


def _div_scale(w: Waves, ins: Instruction) -> None:
    value, scale = num.div_scale(*[source(w, ins, i, "f32") for i in (2, 3, 4)])
    w.write(ins.operands[0], np.ascontiguousarray(value).view(np.uint32))
    w.set_lanes(ins.operands[1], scale)


def _div_fmas(w: Waves, ins: Instruction) -> None:
    scale = w.lanes(Operand("s", VCC, 2))
    made = num.div_fmas(*[source(w, ins, i, "f32") for i in (1, 2, 3)], scale)
    w.write(ins.operands[0], np.ascontiguousarray(made).view(np.uint32))


TABLE: dict[str, Callable[[Waves, Instruction], None]] = {
    **{name: plain(*meaning) for name, meaning in OPS.items()},
    **dict.fromkeys(COMPARISONS, _compare),
    "v_cmp_class_f32": _class,
    "v_cndmask_b32": _cndmask,
    "v_fmac_f32": _fmac,
    "v_fmac_f16": _fmac,
    "v_div_scale_f32": _div_scale,
    "v_div_fmas_f32": _div_fmas,
}
