"""Moves between lanes: DPP and SDWA sources, readlane, writelane, and the LDS hardware's permutations
(AMD, "CDNA3 Instruction Set Architecture", sections DPP, SDWA, VOP3A, DS); swaps of rows (CDNA4, section VOP1).

Every source is read in all lanes before any is written.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Unsupported
from .parse import Instruction
from .state import U32, Waves

LANES = 64
"""The most of a wave. With 32 the sources are those of the first 32 here: rows do not know of one another."""

_LANE = np.arange(LANES)


@cache
def dpp_source(control: str, value: str) -> NDArray[np.int64]:
    """[64]: the lane each lane reads; -1 where there is none. row_bcast and wave_… are not for waves of 32."""
    row, place = _LANE & ~15, _LANE & 15
    if control == "quad_perm":
        order = np.array([int(x) for x in value.strip("[]").split(",")])
        return (_LANE & ~3) + order[_LANE & 3]
    if control in ("row_shl", "row_shr"):
        source = place + (int(value) if control == "row_shl" else -int(value))
        return np.where((source >= 0) & (source < 16), row + source, -1)
    if control == "row_ror":
        return row + ((place - int(value)) & 15)
    if control == "row_bcast":
        if value == "15":
            return np.where(row > 0, row - 1, -1)
        return np.where(row >= 32, 31, -1)
    if control in ("row_newbcast", "row_share"):
        return row + int(value)
    if control == "row_xmask":
        return row + (place ^ int(value))
    if control == "dpp8":
        return (_LANE & ~7) + np.array([int(x) for x in value.strip("[]").split(",")])[_LANE & 7]
    if control in ("wave_shl", "wave_shr"):
        source = _LANE + (1 if control == "wave_shl" else -1)
        return np.where((source >= 0) & (source < LANES), source, -1)
    if control in ("wave_rol", "wave_ror"):
        return (_LANE + (1 if control == "wave_rol" else -1)) % LANES
    raise Unsupported(f"DPP control {control}:{value}")


def _dpp_control(ins: Instruction) -> NDArray[np.int64]:
    if "row_mirror" in ins.mods:
        return (_LANE & ~15) + 15 - (_LANE & 15)
    if "row_half_mirror" in ins.mods:
        return (_LANE & ~7) + 7 - (_LANE & 7)
    for name in ins.mods:
        if name.startswith(
            ("quad_perm", "dpp8", "row_sh", "row_ror", "row_xmask", "row_bcast", "row_newbcast", "wave_")
        ):
            return dpp_source(name, ins.mods[name])
    raise Unsupported("a DPP instruction without a control")


def dpp(w: Waves, ins: Instruction, source: U32) -> tuple[U32, NDArray[np.bool_]]:
    """The permuted source, and the lanes [n, size] that are written.

    A lane whose source lane does not exist or is off reads 0 with bound_ctrl, else it is not written (with fi:1 lanes that
    are off are read all the same); nor are lanes outside row_mask (rows of 16) and bank_mask (4 lanes of each row).
    """
    lane = _dpp_control(ins)[: w.size]
    source = np.broadcast_to(source, (len(w), w.size))
    valid = (lane >= 0) & (w.exec[:, lane] | (ins.number("fi") == 1))
    moved = np.where(valid, source[:, lane], np.uint32(0))
    rows, banks = ins.number("row_mask", 15), ins.number("bank_mask", 15)
    chosen = ((rows >> (_LANE >> 4)) & 1) & ((banks >> ((_LANE >> 2) & 3)) & 1)
    where = w.exec & chosen.astype(bool)[: w.size]
    if "bound_ctrl" not in ins.mods and "dpp8" not in ins.mods:
        where = where & valid
    return moved, where


_SELECT = {f"BYTE_{i}": (8 * i, 8) for i in range(4)} | {"WORD_0": (0, 16), "WORD_1": (16, 16), "DWORD": (0, 32)}


def sdwa_source(source: U32, select: str, sext: bool) -> U32:
    """The chosen bytes, extended to 32 bits."""
    shift, width = _SELECT[select]
    if width == 32:
        return source
    part = (source >> shift) & np.uint32((1 << width) - 1)
    if sext:
        sign = np.uint32(1 << (width - 1))
        part = (part ^ sign) - sign
    return part


def sdwa_result(w: Waves, ins: Instruction, value: Any) -> Any:
    """The result put where dst_sel says, the other bits as dst_unused says."""
    shift, width = _SELECT[ins.mods.get("dst_sel", "DWORD")]
    if width == 32:
        return value
    mask = np.uint32(((1 << width) - 1) << shift)
    placed = (value << np.uint32(shift)) & mask
    unused = ins.mods.get("dst_unused", "UNUSED_PAD")
    if unused == "UNUSED_PRESERVE":
        return placed | (w.read(ins.operands[0]) & ~mask)
    if unused == "UNUSED_PAD":
        return placed
    raise Unsupported(f"dst_unused:{unused}")


def _readlane(w: Waves, ins: Instruction) -> None:
    source = np.broadcast_to(w.read(ins.operands[1]), (len(w), w.size))
    lane = w.scalar(ins.operands[2]) & (w.size - 1)
    w.set_s(ins.operands[0].index, source[np.arange(len(w)), lane])


def _readfirstlane(w: Waves, ins: Instruction) -> None:
    source = np.broadcast_to(w.read(ins.operands[1]), (len(w), w.size))
    w.set_s(ins.operands[0].index, source[np.arange(len(w)), w.exec.argmax(axis=1)])


def _writelane(w: Waves, ins: Instruction) -> None:
    lane = w.scalar(ins.operands[2]) & (w.size - 1)
    w.v[ins.operands[0].index][np.arange(len(w)), lane] = w.scalar(ins.operands[1])


def _gathered(w: Waves, source: U32, lane: NDArray[Any]) -> U32:
    """source[lane]; 0 from lanes that are off."""
    rows = np.arange(len(w))[:, None]
    lane = np.broadcast_to(lane, (len(w), w.size))
    return np.where(w.exec[rows, lane], np.broadcast_to(source, (len(w), w.size))[rows, lane], np.uint32(0))


def _bpermute(w: Waves, ins: Instruction) -> None:
    dst, address, data = ins.operands
    lane = ((w.read(address).astype(np.int64) + ins.number("offset")) >> 2) & (w.size - 1)
    w.write(dst, _gathered(w, w.read(data), lane))


def _permute(w: Waves, ins: Instruction) -> None:
    """The other way round: a lane sends; the highest sender wins, and who gets nothing has 0."""
    dst, address, data = ins.operands
    lane = ((w.read(address).astype(np.int64) + ins.number("offset")) >> 2) & (w.size - 1)
    lane, data_ = (np.broadcast_to(x, (len(w), w.size)) for x in (lane, w.read(data)))
    out, on, rows = np.zeros((len(w), w.size), np.uint32), w.exec, np.arange(len(w))
    for i in range(w.size):
        sends = on[:, i]
        out[rows[sends], lane[sends, i]] = data_[sends, i]
    w.write(dst, out)


@cache
def swizzle_source(offset: str) -> NDArray[np.int64]:
    """[64]: the lane that ds_swizzle's offset makes each lane read."""
    half, place = _LANE & ~31, _LANE & 31
    if macro := re.match(r"swizzle\((\w+),(.*)\)$", offset.replace(" ", "")):
        kind, rest = macro[1], macro[2].split(",")
        if kind == "SWAP":
            return half + (place ^ int(rest[0]))
        if kind == "REVERSE":
            return half + (place ^ (int(rest[0]) - 1))
        if kind == "BROADCAST":
            return half + ((place & ~(int(rest[0]) - 1)) | int(rest[1]))
        if kind == "QUAD_PERM":
            return (_LANE & ~3) + np.array([int(x) for x in rest])[_LANE & 3]
        raise Unsupported(f"swizzle {offset}")
    bits = int(offset, 0)
    if bits & 0x8000:
        return (_LANE & ~3) + np.array([(bits >> (2 * i)) & 3 for i in range(4)])[_LANE & 3]
    return half + (((place & (bits & 31)) | ((bits >> 5) & 31)) ^ ((bits >> 10) & 31))


def _swizzle(w: Waves, ins: Instruction) -> None:
    w.write(ins.operands[0], _gathered(w, w.read(ins.operands[1]), swizzle_source(ins.mods["offset"])[: w.size]))


def _below(w: Waves, ins: Instruction) -> None:
    """v_mbcnt: how many bits of the mask's half are set below this lane, added to the second source."""
    mask = w.read(ins.operands[1])
    high = ins.name == "v_mbcnt_hi_u32_b32"
    count = np.clip(_LANE[: w.size] - (32 if high else 0), 0, 32).astype(np.uint64)
    below = ((np.uint64(1) << count) - np.uint64(1)).astype(np.uint32)
    w.write(ins.operands[0], np.bitwise_count(mask & below).astype(np.uint32) + w.read(ins.operands[2]))


def _swap(width: int) -> Any:
    """v_permlane{width}_swap: of every pair of neighbouring groups of `width` lanes, the second one of the first register
    changes places with the first one of the second register.
    """
    upper = (_LANE // width) % 2 == 1

    def run(w: Waves, ins: Instruction) -> None:
        first, second = ins.operands
        if set(ins.mods) or not w.full:
            raise Unsupported(f"{ins.name} with modifiers or lanes that are off")
        x, y = np.array(w.read(first)), np.array(w.read(second))
        w.write(first, np.where(upper, np.roll(y, width, axis=1), x))
        w.write(second, np.where(upper, y, np.roll(x, -width, axis=1)))

    return run


TABLE = {
    "v_permlane16_swap_b32": _swap(16),
    "v_permlane32_swap_b32": _swap(32),
    "v_readlane_b32": _readlane,
    "v_readfirstlane_b32": _readfirstlane,
    "v_writelane_b32": _writelane,
    "ds_bpermute_b32": _bpermute,
    "ds_permute_b32": _permute,
    "ds_swizzle_b32": _swizzle,
    "v_mbcnt_lo_u32_b32": _below,
    "v_mbcnt_hi_u32_b32": _below,
}
