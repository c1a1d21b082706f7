"""LDS: reads, writes and sums, with a check for races (AMD, "CDNA3 Instruction Set Architecture", section DS)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EmulationError, Unsupported
from .parse import Instruction, Operand
from .state import LANES, Waves


class Lds:
    """[groups, bytes] of shared memory. Between two barriers of a workgroup, a byte that one wave wrote and another
    touches is an error, unless both write the same value.
    """

    def __init__(self, groups: int, size: int, poison: int) -> None:
        self.data = np.full((groups, size), poison & 255, np.uint8)
        # wave + 1 since the last barrier; 0: none; readers -1: several waves
        self.writer = np.zeros((groups, size), np.int16)
        self.reader = np.zeros((groups, size), np.int16)

    def barrier(self, groups: NDArray[np.int64]) -> None:
        self.writer[groups] = 0
        self.reader[groups] = 0

    def read(self, group: Any, wave: Any, at: Any) -> NDArray[np.uint8]:
        """group, wave: [k]; at: [k, size] byte numbers."""
        g, me = group[:, None], (wave + 1)[:, None].astype(np.int16)
        writer = self.writer[g, at]
        if ((writer != 0) & (writer != me)).any():
            raise EmulationError("an LDS byte is read that another wave wrote since the last barrier")
        seen = self.reader[g, at]
        self.reader[g, at] = np.where((seen == 0) | (seen == me), me, -1)
        # waves of one step that read the same byte overwrite each other's mark
        self.reader[g, at] = np.where(self.reader[g, at] == me, me, -1)
        return self.data[g, at]

    def write(self, group: Any, wave: Any, at: Any, data: NDArray[np.uint8]) -> None:
        g, me = group[:, None], (wave + 1)[:, None].astype(np.int16)
        reader, writer = self.reader[g, at], self.writer[g, at]
        if ((reader != 0) & (reader != me)).any():
            raise EmulationError("an LDS byte is written that another wave read since the last barrier")
        if ((writer != 0) & (writer != me) & (self.data[g, at] != data)).any():
            raise EmulationError("two waves write different values to an LDS byte without a barrier between")
        self.data[g, at] = data
        self.writer[g, at] = me
        if ((self.writer[g, at] != me) & (self.data[g, at] != data)).any():
            raise EmulationError("two waves write different values to an LDS byte without a barrier between")


_SIZES = {"b8": 1, "u8": 1, "i8": 1, "b16": 2, "u16": 2, "i16": 2, "b32": 4, "b64": 8, "b96": 12, "b128": 16}


def _places(w: Waves, address: Operand, offset: int, size: int) -> tuple[Any, Any, Any]:
    """Workgroup, wave and bytes of every lane that is on."""
    on = w.exec
    at = np.broadcast_to(w.read(address), on.shape)[on].astype(np.int64) + offset
    bad = (at < 0) | (at + size > w.machine.lds.data.shape[1]) | (at % min(size, 4) != 0)
    if bad.any():
        raise EmulationError(f"{size} bytes at LDS address {at[bad][0]:#x}: outside or misaligned")
    rows = np.broadcast_to(np.arange(len(w))[:, None], on.shape)[on]
    return w.group[rows], w.wave[rows], at[:, None] + np.arange(size)


def _offsets(ins: Instruction) -> tuple[str, list[int], int]:
    """Operation, byte offsets of its one or two accesses, and bytes of each."""
    _, operation, kind = ins.name.split("_")[:3]
    size = _SIZES[kind]
    if "2" not in operation:
        return operation, [ins.number("offset")], size
    step = size * (64 if operation.endswith("st64") else 1)
    return operation, [ins.number("offset0") * step, ins.number("offset1") * step], size


def _read(w: Waves, ins: Instruction) -> None:
    _, offsets, size = _offsets(ins)
    words = -(-size // 4)
    kind = ins.name.split("_")[2]
    made = []
    for offset in offsets:
        group, wave, at = _places(w, ins.operands[1], offset, size)
        raw = np.ascontiguousarray(w.machine.lds.read(group, wave, at))
        if size < 4:
            code = {1: "1", 2: "2"}[size]
            narrow = raw.view(f"{'i' if kind[0] == 'i' else 'u'}{code}")
            raw_words = (narrow.astype(np.int32).view(np.uint32) if kind[0] == "i" else narrow).astype(np.uint32)
        else:
            raw_words = raw.view(np.uint32)
        full = np.zeros((len(w), LANES, words), np.uint32)
        full[w.exec] = raw_words
        made.append(full)
    for i, full in enumerate(made):
        for j in range(words):
            w.write(ins.operands[0], full[:, :, j], i * words + j)


_TRANSPOSED = {"b4": 16, "b8": 8, "b16": 4}
"""Elements of each size in 64 bits."""


def _transposed(w: Waves, ins: Instruction) -> None:
    """Each 16 lanes read 64 bits a lane, together a matrix of 16 columns whose rows follow one another in the lanes; lane i
    of them gets column i.
    """
    if not w.full:
        raise Unsupported(f"{ins.name} with lanes that are off")
    kind = ins.name.rpartition("_")[2]
    rows, bits = _TRANSPOSED[kind], 64 // _TRANSPOSED[kind]
    group, wave, at = _places(w, ins.operands[1], ins.number("offset"), 8)
    if (at[:, 0] % 8).any():
        raise EmulationError(f"LDS address {at[at[:, 0] % 8 != 0][0, 0]:#x} of a transposed read is not a multiple of 8")
    raw = np.ascontiguousarray(w.machine.lds.read(group, wave, at)).view(np.uint64).reshape(len(w), 4, 16, 1)
    # little-endian: the first element is the lowest bits
    shifts = (np.arange(rows) * bits).astype(np.uint64)
    matrix = ((raw >> shifts) & np.uint64((1 << bits) - 1)).reshape(len(w), 4, rows, 16)
    column = (matrix.transpose(0, 1, 3, 2) << shifts).sum(axis=3, dtype=np.uint64).reshape(len(w), LANES)
    w.write64(ins.operands[0], column)


def _write(w: Waves, ins: Instruction) -> None:
    _, offsets, size = _offsets(ins)
    for data, offset in zip(ins.operands[1:], offsets, strict=True):
        group, wave, at = _places(w, ins.operands[0], offset, size)
        words = [np.broadcast_to(w.read(data, i), (len(w), LANES))[w.exec] for i in range(-(-size // 4))]
        if ins.name.endswith("_d16_hi"):
            words = [words[0] >> 16]
        raw = np.stack(words, axis=1).view(np.uint8)[:, :size]
        w.machine.lds.write(group, wave, at, raw)


def _add(w: Waves, ins: Instruction) -> None:
    """An atomic sum without a result; atomics of several waves are no race."""
    group, _, at = _places(w, ins.operands[0], ins.number("offset"), 4)
    values = np.broadcast_to(w.read(ins.operands[1]), (len(w), LANES))[w.exec]
    words = w.machine.lds.data.view(np.uint32)
    np.add.at(words, (group, at[:, 0] // 4), values)


_KINDS = ("b32", "b64")
TABLE = {
    **{f"ds_read_{k}": _read for k in ("u8", "i8", "u16", "i16", "b32", "b64", "b96", "b128")},
    **{f"ds_write_{k}": _write for k in ("b8", "b16", "b8_d16_hi", "b16_d16_hi", "b32", "b64", "b96", "b128")},
    **{f"ds_read2{s}_{k}": _read for s in ("", "st64") for k in _KINDS},
    **{f"ds_write2{s}_{k}": _write for s in ("", "st64") for k in _KINDS},
    **{f"ds_read_b64_tr_{k}": _transposed for k in _TRANSPOSED},
    "ds_add_u32": _add,
}
