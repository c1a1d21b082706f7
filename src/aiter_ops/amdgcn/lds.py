"""LDS: reads, transposed ones too, writes and sums, with a check for races (AMD, "CDNA3 Instruction Set Architecture" and
"CDNA4 Instruction Set Architecture", section DS).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EmulationError, Unsupported
from .parse import Instruction
from .state import Waves

_PER_WORD = {1: (np.uint8, np.int16, 1), 4: (np.uint32, np.int64, 0x0001000100010001)}
"""By bytes of a unit: types of its data and of its bytes' marks, and what a mark is multiplied by to stand for all."""


class Lds:
    """[groups, bytes] of shared memory. Between two barriers of a workgroup, a byte that one wave wrote and another
    touches is an error, unless both write the same value. A byte that a load from memory will write may not be touched
    before that load was waited for.
    """

    def __init__(self, groups: int, size: int) -> None:
        size = -(-size // 4) * 4
        self.data = np.zeros((groups, size), np.uint8)
        # wave + 1 since the last barrier; 0: none; readers -1: several waves
        self.writer = np.zeros((groups, size), np.int16)
        self.reader = np.zeros((groups, size), np.int16)
        # number of the outstanding load that will write a byte; 0: none. By number: groups, waves, bytes [k, size]
        self._flying: NDArray[np.int32] | None = None
        self._flights: dict[int, tuple[Any, Any, Any]] = {}
        self._issued = 0

    def barrier(self, groups: NDArray[np.int64]) -> None:
        self.writer[groups] = 0
        self.reader[groups] = 0

    def _views(self, unit: int, group: Any, wave: Any, first: Any, size: int) -> tuple[Any, ...]:
        """Data, writers and readers as flat arrays of units, the places [k, size / unit] in them, the mark [k, 1]."""
        data, mark, all_bytes = _PER_WORD[unit]
        at = ((group * self.data.shape[1] + first) // unit)[:, None] + np.arange(size // unit)
        flat = self.data.reshape(-1).view(data), self.writer.reshape(-1).view(mark), self.reader.reshape(-1).view(mark)
        return *flat, at, ((wave + 1) * all_bytes).astype(mark)[:, None]

    def _require_landed(self, group: Any, first: Any, size: int) -> None:
        if (
            self._flights
            and self._flying is not None
            and self._flying[group[:, None], first[:, None] + np.arange(size)].any()
        ):
            raise EmulationError("an LDS byte is touched while a load into it is outstanding")

    def read(self, group: Any, wave: Any, first: Any, size: int, unit: int = 4) -> NDArray[np.uint8]:
        """[k, size] bytes. group, wave, first byte: [k]; whole units are looked at together where their bytes agree."""
        unit = unit if size % 4 == 0 else 1
        self._require_landed(group, first, size)
        data, writers, readers, at, me = self._views(unit, group, wave, first, size)
        writer, seen = writers[at], readers[at]
        foreign, others = (writer != 0) & (writer != me), (seen != 0) & (seen != me)
        if unit > 1 and (foreign.any() or (seen != (seen & 0xFFFF) * _PER_WORD[unit][2])[others & (seen != -1)].any()):
            return self.read(group, wave, first, size, 1)
        if foreign.any():
            raise EmulationError("an LDS byte is read that another wave wrote since the last barrier")
        readers[at] = np.where(others, -1, me)
        # waves of one step that read the same byte overwrote each other's mark
        lost = (readers[at] != me) & ~others
        if lost.any():
            readers[at[lost]] = -1
        return np.ascontiguousarray(data[at]).view(np.uint8)

    def write(self, group: Any, wave: Any, first: Any, new: NDArray[np.uint8], unit: int = 4) -> None:
        """new: [k, size] bytes."""
        size = new.shape[1]
        unit = unit if size % 4 == 0 else 1
        self._require_landed(group, first, size)
        data, writers, readers, at, me = self._views(unit, group, wave, first, size)
        reader, writer = readers[at], writers[at]
        read_by_others = ((reader != 0) & (reader != me)).any()
        foreign = (writer != 0) & (writer != me)
        if unit > 1 and (read_by_others or foreign.any()):
            self.write(group, wave, first, new, 1)
            return
        if read_by_others:
            raise EmulationError("an LDS byte is written that another wave read since the last barrier")
        new = np.ascontiguousarray(new).view(data.dtype)
        if (foreign & (data[at] != new)).any():
            raise EmulationError("two waves write different values to an LDS byte without a barrier between")
        data[at] = new
        writers[at] = me
        if ((writers[at] != me) & (data[at] != new)).any():
            raise EmulationError("two waves write different values to an LDS byte without a barrier between")

    def fly(self, group: Any, wave: Any, first: Any, new: NDArray[np.uint8]) -> int:
        """A load from memory whose bytes `new` are written some time before it was waited for; its number."""
        self.write(group, wave, first, new)
        if self._flying is None:
            self._flying = np.zeros(self.data.shape, np.int32)
        self._issued += 1
        at = first[:, None] + np.arange(new.shape[1])
        self._flying[group[:, None], at] = self._issued
        self._flights[self._issued] = group, wave, at
        return self._issued

    def land(self, number: int, groups: Any, waves: Any) -> None:
        """The waves have waited for that load: as if they had written its bytes now."""
        group, wave, at = self._flights[number]
        waiting = np.isin(group * 1024 + wave, groups * 1024 + waves)
        assert self._flying is not None
        self._flying[group[waiting][:, None], at[waiting]] = 0
        self.writer[group[waiting][:, None], at[waiting]] = (wave[waiting] + 1)[:, None]
        if waiting.all():
            del self._flights[number]
        else:
            self._flights[number] = group[~waiting], wave[~waiting], at[~waiting]


_SIZES = {"b8": 1, "u8": 1, "i8": 1, "b16": 2, "u16": 2, "i16": 2, "b32": 4, "b64": 8, "b96": 12, "b128": 16}


def places(w: Waves, address: Any, offset: int, size: int) -> tuple[Any, Any, Any]:
    """Workgroup, wave and first byte of the access of every lane that is on. address: [n, 64]"""
    on = w.exec
    at = np.broadcast_to(address, on.shape)[on].astype(np.int64) + offset
    bad = (at < 0) | (at + size > w.machine.lds.data.shape[1]) | (at % min(size, 4) != 0)
    if bad.any():
        raise EmulationError(f"{size} bytes at LDS address {at[bad][0]:#x}: outside or misaligned")
    w.machine.touch_lds(w, at, size)
    rows = np.broadcast_to(np.arange(len(w))[:, None], on.shape)[on]
    return w.group[rows], w.wave[rows], at


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
        raw = w.machine.lds.read(*places(w, w.read(ins.operands[1]), offset, size), size)
        if size < 4:
            code = {1: "1", 2: "2"}[size]
            narrow = raw.view(f"{'i' if kind[0] == 'i' else 'u'}{code}")
            raw_words = (narrow.astype(np.int32).view(np.uint32) if kind[0] == "i" else narrow).astype(np.uint32)
        else:
            raw_words = raw.view(np.uint32)
        if w.full:
            full = raw_words.reshape(len(w), w.size, words)
        else:
            full = np.zeros((len(w), w.size, words), np.uint32)
            full[w.exec] = raw_words
        made.append(full)
    if "_d16" in ins.name:
        w.write_half(ins.operands[0], made[0][:, :, 0] & np.uint32(0xFFFF), ins.name.endswith("_hi"))
        return
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
    group, wave, at = places(w, w.read(ins.operands[1]), ins.number("offset"), 8)
    if (at % 8).any():
        raise EmulationError(f"LDS address {at[at % 8 != 0][0]:#x} of a transposed read is not a multiple of 8")
    raw = w.machine.lds.read(group, wave, at, 8).view(np.uint64).reshape(len(w), 4, 16, 1)
    # little-endian: the first element is the lowest bits
    shifts = (np.arange(rows) * bits).astype(np.uint64)
    matrix = ((raw >> shifts) & np.uint64((1 << bits) - 1)).reshape(len(w), 4, rows, 16)
    column = (matrix.transpose(0, 1, 3, 2) << shifts).sum(axis=3, dtype=np.uint64).reshape(len(w), w.size)
    w.write64(ins.operands[0], column)


def _write(w: Waves, ins: Instruction) -> None:
    _, offsets, size = _offsets(ins)
    for data, offset in zip(ins.operands[1:], offsets, strict=True):
        group, wave, at = places(w, w.read(ins.operands[0]), offset, size)
        words = [np.broadcast_to(w.read(data, i), (len(w), w.size))[w.exec] for i in range(-(-size // 4))]
        if ins.name.endswith("_d16_hi"):
            words = [words[0] >> 16]
        raw = np.stack(words, axis=1).view(np.uint8)[:, :size]
        w.machine.lds.write(group, wave, at, raw)


def _add(w: Waves, ins: Instruction) -> None:
    """An atomic sum without a result; atomics of several waves are no race."""
    group, _, at = places(w, w.read(ins.operands[0]), ins.number("offset"), 4)
    values = np.broadcast_to(w.read(ins.operands[1]), (len(w), w.size))[w.exec]
    words = w.machine.lds.data.view(np.uint32)
    np.add.at(words, (group, at // 4), values)


_KINDS = ("b32", "b64")
TABLE = {
    **{f"ds_read_{k}": _read for k in ("u8", "i8", "u16", "i16", "b32", "b64", "b96", "b128")},
    **{f"ds_read_{k}_d16{half}": _read for k in ("u8", "i8", "u16") for half in ("", "_hi")},
    **{f"ds_write_{k}": _write for k in ("b8", "b16", "b8_d16_hi", "b16_d16_hi", "b32", "b64", "b96", "b128")},
    **{f"ds_read2{s}_{k}": _read for s in ("", "st64") for k in _KINDS},
    **{f"ds_write2{s}_{k}": _write for s in ("", "st64") for k in _KINDS},
    **{f"ds_read_b64_tr_{k}": _transposed for k in _TRANSPOSED},
    "ds_add_u32": _add,
}
