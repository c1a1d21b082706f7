"""Scalar instructions (AMD, "CDNA3 Instruction Set Architecture", chapter 5 and sections SOP1, SOP2, SOPC, SOPK).

Each table maps a mnemonic to a function of [n] arrays; where it returns a pair, the second is the new SCC.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import Unsupported
from .parse import EXEC, Instruction
from .state import Waves
from .targets import Target

Run = Callable[[Waves, Instruction], None]


def _u64(x: Any) -> Any:
    return x.astype(np.uint64)


def _i32(x: Any) -> Any:
    return x.view(np.int32)


def _i64(x: Any) -> Any:
    return _i32(x).astype(np.int64)


def _low(x: Any) -> Any:
    return (x & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _flagged(x: Any) -> Any:
    """A result whose SCC says that it is not zero."""
    return x, x != 0


def _carried(total: Any) -> Any:
    return _low(total), total > np.uint64(0xFFFFFFFF)


def _overflow(wide: Any) -> Any:
    low = (wide & 0xFFFFFFFF).astype(np.uint32)
    return low, _i64(low) != wide


def _bfe(a: Any, b: Any, signed: bool) -> Any:
    shift, width = (b & 31).astype(np.uint64), ((b >> 16) & 127).astype(np.uint64)
    width = np.minimum(width, np.uint64(32))
    # bits from beyond the top of a signed one are copies of it
    wide = _i64(a).view(np.uint64) if signed else _u64(a)
    raw = (wide >> shift) & ((np.uint64(1) << width) - np.uint64(1))
    if not signed:
        return _flagged(_low(raw))
    top = np.where(width > 0, np.uint64(1) << np.maximum(width, np.uint64(1)) - np.uint64(1), np.uint64(0))
    return _flagged(_low((raw ^ top) - top))


def reversed_bits(x: Any) -> Any:
    x = np.asarray(x)
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        x = ((x >> shift) & np.uint32(mask)) | ((x & np.uint32(mask)) << shift)
    return (x >> 16) | (x << 16)


def _pick(a: Any, b: Any, most: bool, signed: bool) -> Any:
    x, y = (_i32(a), _i32(b)) if signed else (a, b)
    first = x >= y if most else x < y
    return np.where(first, a, b), first


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "s_add_u32": lambda a, b: _carried(_u64(a) + _u64(b)),
    "s_sub_u32": lambda a, b: (a - b, b > a),
    "s_add_i32": lambda a, b: _overflow(_i64(a) + _i64(b)),
    "s_sub_i32": lambda a, b: _overflow(_i64(a) - _i64(b)),
    "s_mul_i32": lambda a, b: a * b,
    "s_mul_hi_u32": lambda a, b: (_u64(a) * _u64(b) >> np.uint64(32)).astype(np.uint32),
    "s_mul_hi_i32": lambda a, b: ((_i64(a) * _i64(b)) >> 32).astype(np.int32).view(np.uint32),
    "s_and_b32": lambda a, b: _flagged(a & b),
    "s_or_b32": lambda a, b: _flagged(a | b),
    "s_xor_b32": lambda a, b: _flagged(a ^ b),
    "s_andn2_b32": lambda a, b: _flagged(a & ~b),
    "s_orn2_b32": lambda a, b: _flagged(a | ~b),
    "s_lshl_b32": lambda a, b: _flagged(a << (b & 31)),
    "s_lshr_b32": lambda a, b: _flagged(a >> (b & 31)),
    "s_ashr_i32": lambda a, b: _flagged((_i32(a) >> (b & 31).astype(np.int32)).view(np.uint32)),
    "s_bfe_u32": lambda a, b: _bfe(a, b, False),
    "s_bfe_i32": lambda a, b: _bfe(a, b, True),
    "s_bfm_b32": lambda a, b: ((np.uint32(1) << (a & 31)) - np.uint32(1)) << (b & 31),
    "s_min_i32": lambda a, b: _pick(a, b, False, True),
    "s_max_i32": lambda a, b: _pick(a, b, True, True),
    "s_min_u32": lambda a, b: _pick(a, b, False, False),
    "s_max_u32": lambda a, b: _pick(a, b, True, False),
    "s_lshl1_add_u32": lambda a, b: _carried((_u64(a) << np.uint64(1)) + _u64(b)),
    "s_lshl2_add_u32": lambda a, b: _carried((_u64(a) << np.uint64(2)) + _u64(b)),
    "s_lshl3_add_u32": lambda a, b: _carried((_u64(a) << np.uint64(3)) + _u64(b)),
    "s_lshl4_add_u32": lambda a, b: _carried((_u64(a) << np.uint64(4)) + _u64(b)),
    "s_pack_ll_b32_b16": lambda a, b: (a & 0xFFFF) | (b << 16),
    "s_pack_lh_b32_b16": lambda a, b: (a & 0xFFFF) | (b & np.uint32(0xFFFF0000)),
    "s_pack_hh_b32_b16": lambda a, b: (a >> 16) | (b & np.uint32(0xFFFF0000)),
}

BINARY64: dict[str, Callable[[Any, Any], Any]] = {
    "s_and_b64": lambda a, b: _flagged(a & b),
    "s_or_b64": lambda a, b: _flagged(a | b),
    "s_xor_b64": lambda a, b: _flagged(a ^ b),
    "s_andn2_b64": lambda a, b: _flagged(a & ~b),
    "s_orn2_b64": lambda a, b: _flagged(a | ~b),
    "s_nand_b64": lambda a, b: _flagged(~(a & b)),
    "s_nor_b64": lambda a, b: _flagged(~(a | b)),
    "s_xnor_b64": lambda a, b: _flagged(~(a ^ b)),
}

SHIFT64: dict[str, Callable[[Any, Any], Any]] = {
    "s_lshl_b64": lambda a, b: _flagged(a << (b & 63).astype(np.uint64)),
    "s_lshr_b64": lambda a, b: _flagged(a >> (b & 63).astype(np.uint64)),
    "s_ashr_i64": lambda a, b: _flagged((a.view(np.int64) >> (b & 63).astype(np.int64)).view(np.uint64)),
}

UNARY: dict[str, Callable[[Any], Any]] = {
    "s_mov_b32": lambda a: a,
    "s_not_b32": lambda a: _flagged(~a),
    "s_brev_b32": reversed_bits,
    "s_abs_i32": lambda a: _flagged(np.where(_i32(a) < 0, np.uint32(0) - a, a)),
    "s_sext_i32_i8": lambda a: a.astype(np.uint8).view(np.int8).astype(np.int32).view(np.uint32),
    "s_sext_i32_i16": lambda a: a.astype(np.uint16).view(np.int16).astype(np.int32).view(np.uint32),
    "s_bcnt1_i32_b32": lambda a: _flagged(np.bitwise_count(a).astype(np.uint32)),
}

UNARY64: dict[str, Callable[[Any], Any]] = {
    "s_mov_b64": lambda a: a,
    "s_not_b64": lambda a: _flagged(~a),
}

_COMPARE = {
    "eq": np.equal,
    "lg": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}

_SAVEEXEC: dict[str, Callable[[Any, Any], Any]] = {
    "and": lambda s, e: s & e,
    "or": lambda s, e: s | e,
    "xor": lambda s, e: s ^ e,
    "andn2": lambda s, e: s & ~e,
    "andn1": lambda s, e: ~s & e,
}
SAVEEXEC, SAVEEXEC32 = ({f"s_{n}_saveexec_{kind}": f for n, f in _SAVEEXEC.items()} for kind in ("b64", "b32"))


def _store(w: Waves, ins: Instruction, made: Any, wide: bool) -> None:
    value, scc = made if isinstance(made, tuple) else (made, None)
    (w.set_s64 if wide else w.set_s)(ins.operands[0].index, value)
    if scc is not None:
        w.scc = np.broadcast_to(scc, len(w)).copy()


def _binary(w: Waves, ins: Instruction) -> None:
    _store(w, ins, BINARY[ins.name](w.scalar(ins.operands[1]), w.scalar(ins.operands[2])), False)


def _binary64(w: Waves, ins: Instruction) -> None:
    _store(w, ins, BINARY64[ins.name](w.scalar64(ins.operands[1]), w.scalar64(ins.operands[2])), True)


def _shift64(w: Waves, ins: Instruction) -> None:
    _store(w, ins, SHIFT64[ins.name](w.scalar64(ins.operands[1]), w.scalar(ins.operands[2])), True)


def _unary(w: Waves, ins: Instruction) -> None:
    _store(w, ins, UNARY[ins.name](w.scalar(ins.operands[1])), False)


def _unary64(w: Waves, ins: Instruction) -> None:
    _store(w, ins, UNARY64[ins.name](w.scalar64(ins.operands[1])), True)


def _with_carry(w: Waves, ins: Instruction) -> None:
    a, b = _u64(w.scalar(ins.operands[1])), _u64(w.scalar(ins.operands[2]))
    if ins.name == "s_addc_u32":
        _store(w, ins, _carried(a + b + _u64(w.scc)), False)
    else:
        _store(w, ins, (_low(a - b - _u64(w.scc)), b + _u64(w.scc) > a), False)


def _select(w: Waves, ins: Instruction) -> None:
    wide = ins.name.endswith("64")
    read = w.scalar64 if wide else w.scalar
    _store(w, ins, np.where(w.scc, read(ins.operands[1]), read(ins.operands[2])), wide)


def _bcnt64(w: Waves, ins: Instruction) -> None:
    _store(w, ins, _flagged(np.bitwise_count(w.scalar64(ins.operands[1])).astype(np.uint32)), False)


def _saveexec(w: Waves, ins: Instruction) -> None:
    wide = ins.name.endswith("64")
    source, before = (w.scalar64 if wide else w.scalar)(ins.operands[1]), w.s64(EXEC) if wide else w.s[EXEC].copy()
    after = (SAVEEXEC if wide else SAVEEXEC32)[ins.name](source, before)
    _store(w, ins, before, wide)
    (w.set_s64 if wide else w.set_s)(EXEC, after)
    w.scc = after != 0


def _compare(w: Waves, ins: Instruction) -> None:
    _, _, relation, kind = ins.name.split("_")
    wide = kind.endswith("64")
    read = w.scalar64 if wide else w.scalar
    a, b = read(ins.operands[0]), read(ins.operands[1])
    if kind == "i32":
        a, b = _i32(a), _i32(b)
    w.scc = _COMPARE[relation](a, b)


def _constant16(ins: Instruction) -> int:
    """The 16-bit constant of SOPK, as an unsigned pattern."""
    return ins.operands[1].constant(16)


def _signed16(ins: Instruction) -> Any:
    return np.uint32((_constant16(ins) ^ 0x8000) - 0x8000 & 0xFFFFFFFF)


def _movk(w: Waves, ins: Instruction) -> None:
    w.set_s(ins.operands[0].index, _signed16(ins))


def _addk(w: Waves, ins: Instruction) -> None:
    k = np.full(len(w), _signed16(ins), np.uint32)
    _store(w, ins, BINARY["s_add_i32"](w.scalar(ins.operands[0]), k), False)


def _mulk(w: Waves, ins: Instruction) -> None:
    w.set_s(ins.operands[0].index, w.scalar(ins.operands[0]) * _signed16(ins))


def _comparek(w: Waves, ins: Instruction) -> None:
    _, _, relation, kind = ins.name.split("_")
    a = w.scalar(ins.operands[0])
    if kind == "i32":
        w.scc = _COMPARE[relation](_i32(a), np.int32((_constant16(ins) ^ 0x8000) - 0x8000))
    else:
        w.scc = _COMPARE[relation](a, np.uint32(_constant16(ins)))


def _bit(w: Waves, ins: Instruction) -> None:
    bit = (w.scalar(ins.operands[0]) >> (w.scalar(ins.operands[1]) & 31)) & 1
    w.scc = bit == (1 if "cmp1" in ins.name else 0)


def _bitset(w: Waves, ins: Instruction) -> None:
    bit = np.uint32(1) << (w.scalar(ins.operands[1]) & 31)
    before = w.scalar(ins.operands[0])
    w.set_s(ins.operands[0].index, before | bit if "set1" in ins.name else before & ~bit)


def _setreg(w: Waves, ins: Instruction) -> None:
    """hwreg(HW_REG_MODE, offset, size), value: only MODE, with a constant."""
    inside = ins.operands[0].text.removeprefix("hwreg(").rstrip(")").split(",")
    if inside[0].strip() not in ("HW_REG_MODE", "HW_REG_WAVE_MODE") or len(inside) != 3:
        raise Unsupported(f"hardware register {ins.operands[0].text}")
    offset, size = int(inside[1]), int(inside[2])
    mask = ((1 << size) - 1) << offset
    w.mode = (w.mode & ~mask) | ((int(ins.operands[1].value) << offset) & mask)
    require_mode(w.mode, w.machine.target)


FP16_OVFL = 1 << 23


def require_mode(mode: int, target: Target) -> None:
    """Round to nearest even, denormal numbers kept, DX10_CLAMP and IEEE on; FP16_OVFL is free."""
    mask, modelled = target.mode
    if mode & mask != modelled:
        raise Unsupported(f"MODE {mode:#x}: other rounding, denormal, clamp or IEEE modes than {modelled:#x}")


TABLE: dict[str, Run] = {
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(BINARY64, _binary64),
    **dict.fromkeys(SHIFT64, _shift64),
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(UNARY64, _unary64),
    **dict.fromkeys(SAVEEXEC, _saveexec),
    **dict.fromkeys(("s_addc_u32", "s_subb_u32"), _with_carry),
    **dict.fromkeys(("s_cselect_b32", "s_cselect_b64"), _select),
    **dict.fromkeys([f"s_cmp_{r}_{t}" for r in _COMPARE for t in ("i32", "u32")], _compare),
    **dict.fromkeys(("s_cmp_eq_u64", "s_cmp_lg_u64"), _compare),
    **dict.fromkeys([f"s_cmpk_{r}_{t}" for r in _COMPARE for t in ("i32", "u32")], _comparek),
    **dict.fromkeys(("s_bitcmp0_b32", "s_bitcmp1_b32"), _bit),
    **dict.fromkeys(("s_bitset0_b32", "s_bitset1_b32"), _bitset),
    "s_bcnt1_i32_b64": _bcnt64,
    "s_movk_i32": _movk,
    "s_addk_i32": _addk,
    "s_mulk_i32": _mulk,
    "s_setreg_imm32_b32": _setreg,
}

RDNA: dict[str, Run] = dict.fromkeys(SAVEEXEC32, _saveexec)
"""What waves of 32 lanes have beside that."""
