"""Tensors as memory, and scalar, global and buffer instructions
(AMD, "CDNA3 Instruction Set Architecture" and "CDNA4 Instruction Set Architecture", chapters Scalar Memory Operations and
Vector Memory Operations, of that the section on loads to LDS).

Every tensor that was passed lies in a region of its own, 4 GiB from the next; an access that is not wholly inside one
is an error with instruction, wave, lane and address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import control
from .errors import EmulationError, Unsupported
from .lds import places
from .parse import M0, Instruction, Operand
from .state import U64, Waves
from .undefined import require_defined

# upper halves of addresses are small, so that they are no sizes
FIRST, APART = 1 << 33, 1 << 33


class Memory:
    """Regions of bytes. `add` gives a region's address; reads and writes take any arrays of addresses."""

    def __init__(self) -> None:
        self.regions: list[NDArray[np.uint8]] = []
        self.bases: list[int] = []
        self.allowed: list[NDArray[np.bool_] | None] = []

    def add(self, data: NDArray[np.uint8], misalignment: int = 0, allowed: NDArray[np.bool_] | None = None) -> int:
        """`data` is used in place. misalignment: address modulo 256. allowed: bytes that may be touched; None: all."""
        base = FIRST + len(self.regions) * APART + misalignment
        self.regions.append(data)
        self.bases.append(base)
        self.allowed.append(allowed)
        return base

    def located(self, addresses: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Region and offset in it, of addresses that lie in regions."""
        region = (addresses.astype(np.int64) - FIRST) // APART
        return region, addresses.astype(np.int64) - np.array(self.bases)[region]

    def _places(self, addresses: U64, size: int) -> list[tuple[int, NDArray[np.bool_], NDArray[np.int64]]]:
        """By region: which accesses, and their offsets there. addresses: flat."""
        region = (addresses.astype(np.int64) - FIRST) // APART
        out = []
        for r in np.unique(region):
            chosen = region == r
            if not 0 <= r < len(self.regions):
                self._outside(addresses, chosen, size)
            offset = addresses[chosen].astype(np.int64) - self.bases[r]
            bad = (offset < 0) | (offset + size > len(self.regions[r]))
            mask = self.allowed[r]
            if mask is not None and not bad.any():
                bad = ~(mask[offset] & mask[offset + size - 1])
            if bad.any():
                wrong = chosen.copy()
                wrong[chosen] = bad
                self._outside(addresses, wrong, size)
            out.append((int(r), chosen, offset))
        return out

    @staticmethod
    def _outside(addresses: U64, wrong: NDArray[np.bool_], size: int) -> None:
        at = int(wrong.argmax())
        raise EmulationError(f"{size} bytes at {int(addresses[at]):#x} are outside every tensor that was passed", at)

    def read(self, addresses: U64, size: int) -> NDArray[np.uint8]:
        """[k, size] bytes from k addresses."""
        out = np.empty((len(addresses), size), np.uint8)
        for r, chosen, offset in self._places(addresses, size):
            out[chosen] = self.regions[r][offset[:, None] + np.arange(size)]
        return out

    def write(self, addresses: U64, data: NDArray[np.uint8]) -> None:
        """data: [k, size]; of equal addresses the last one stays."""
        size = data.shape[1]
        for r, chosen, offset in self._places(addresses, size):
            self.regions[r][offset[:, None] + np.arange(size)] = data[chosen]


SIZES = {"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "byte": 1, "short": 2, "dword": 4}
SIZES |= {"dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


def _aligned(addresses: U64, size: int) -> None:
    off = addresses & np.uint64(min(size, 4) - 1)
    if off.any():
        raise EmulationError("a misaligned access", int(off.argmax()))


def _load(w: Waves, ins: Instruction, dst: Operand, addresses: U64, active: NDArray[np.bool_]) -> None:
    """Lanes that are on but not `active` read 0."""
    kind = ins.name.partition("_load_")[2]
    size = SIZES[kind]
    words = -(-size // 4)
    data = np.zeros((len(w), w.size, words), np.uint32)
    if active.any():
        raw = w.machine.touch(w, active, addresses, size, lambda at: w.machine.memory.read(_checked(at, size), size))
        if size < 4:
            narrow = np.ascontiguousarray(raw).view({1: np.uint8, 2: np.uint16}[size])
            if kind.startswith("s"):
                narrow = narrow.view({1: np.int8, 2: np.int16}[size]).astype(np.int32).view(np.uint32)
            data[active] = narrow.astype(np.uint32)
        else:
            data[active] = raw.view(np.uint32)
    for i in range(words):
        w.write(dst, data[:, :, i], i)


def _checked(addresses: U64, size: int) -> U64:
    _aligned(addresses, size)
    return addresses


def _store(w: Waves, ins: Instruction, data: Operand, addresses: U64, active: NDArray[np.bool_]) -> None:
    kind, _, high = ins.name.partition("_store_")[2].partition("_d16_hi")
    if ins.name.endswith("_d16_hi"):
        kind, high = ins.name.partition("_store_")[2].removesuffix("_d16_hi"), "yes"
    size = SIZES[kind]
    if not active.any():
        return
    if size < 4:
        value = np.broadcast_to(w.read(data), (len(w), w.size))[active]
        value = value >> 16 if high else value
        raw = value.astype({1: np.uint8, 2: np.uint16}[size])[:, None].view(np.uint8)
    else:
        words = [np.broadcast_to(w.read(data, i), (len(w), w.size))[active] for i in range(size // 4)]
        raw = np.stack(words, axis=1).view(np.uint8)
    if w.twins:
        require_defined(w, "data that is stored", raw, active)
    w.machine.touch(w, active, addresses, size, lambda at: w.machine.memory.write(_checked(at, size), raw), store=True)


def _buffer(w: Waves, ins: Instruction) -> None:
    """data, [offset], descriptor, scalar offset. Raw buffers without stride or swizzling: beyond num_records loads give
    0 and stores are dropped; an access that lies across the end is an error here, and so is one whose offsets begin below
    zero: their sum does not wrap, so the access would be dropped.
    """
    if "idxen" in ins.mods:
        raise Unsupported("idxen of a buffer instruction")
    to_lds = "lds" in ins.mods
    data, rest = (None, list(ins.operands)) if to_lds else (ins.operands[0], list(ins.operands[1:]))
    offset = w.read(rest.pop(0)).astype(np.int64) if "offen" in ins.mods else np.zeros((1, 1), np.int64)
    descriptor, soffset = rest
    words = [w.s[descriptor.index + i] for i in range(4)]
    plain = w.machine.target.word3
    if (words[1] >> 16).any() or (words[3] != plain).any():
        raise Unsupported(f"a buffer descriptor with a stride, or another word 3 than {plain:#x}")
    base = words[0].astype(np.uint64) | ((words[1] & np.uint32(0xFFFF)).astype(np.uint64) << np.uint64(32))
    offset = offset + ins.number("offset") + w.scalar(soffset).astype(np.int64)[:, None]
    offset = np.broadcast_to(offset, (len(w), w.size))
    records = words[2].astype(np.int64)[:, None]
    size = SIZES[ins.name.replace("_store_", "_load_").partition("_load_")[2].removesuffix("_d16_hi")]
    inside = offset + size <= records
    if (~inside & (offset < records) & w.exec).any():
        raise EmulationError("a buffer access across the end of its records")
    if ((offset >= 1 << 32) & (offset + size - (1 << 32) <= records) & w.exec).any():
        raise EmulationError("a buffer's offsets whose sum would be inside only if it wrapped")
    addresses = base[:, None] + offset.astype(np.uint64)
    if data is None:
        _load_to_lds(w, ins, addresses, inside & w.exec, size)
        return
    (_load if "_load_" in ins.name else _store)(w, ins, data, addresses, inside & w.exec)


def _load_to_lds(w: Waves, ins: Instruction, addresses: U64, active: NDArray[np.bool_], size: int) -> None:
    """Lane l's bytes go to LDS at M0 + offset + l · size; what is on but not `active` writes 0. It is outstanding in vmcnt."""
    if size % 4:
        raise Unsupported(f"loads of {size} bytes to LDS")
    raw = np.zeros((len(w), w.size, size), np.uint8)
    if active.any():
        read = w.machine.memory.read
        raw[active] = w.machine.touch(w, active, addresses, size, lambda at: read(_checked(at, size), size))
    start = w.s[M0][:, None].astype(np.int64) + np.arange(w.size) * size
    group, wave, at = places(w, start, ins.number("offset"), size)
    control.note(
        w, control.Outstanding("vm", "lds load", frozenset({("lds", w.machine.lds.fly(group, wave, at, raw[w.exec]))}))
    )


def _global_to_lds(w: Waves, ins: Instruction) -> None:
    addresses = _address(w, ins, ins.operands[0], ins.operands[1:])
    _load_to_lds(w, ins, addresses, w.exec, SIZES[ins.name.partition("_load_lds_")[2]])


def _address(w: Waves, ins: Instruction, address: Operand, base: Sequence[Operand]) -> U64:
    """64 bits of vector registers, or a scalar pair `base` with a 32-bit vector offset."""
    start = w.scalar64(base[0])[:, None] + w.read(address).astype(np.uint64) if base else w.read64(address)
    return np.broadcast_to(start + np.uint64(ins.number("offset") & 0xFFFFFFFFFFFFFFFF), (len(w), w.size))


def _global(w: Waves, ins: Instruction) -> None:
    load = "_load_" in ins.name
    data, address = (ins.operands[0], ins.operands[1]) if load else (ins.operands[1], ins.operands[0])
    (_load if load else _store)(w, ins, data, _address(w, ins, address, ins.operands[2:]), w.exec)


_SCALAR = {"dword": 4, "dwordx2": 8, "dwordx4": 16, "dwordx8": 32, "dwordx16": 64}
_SCALAR_RDNA4 = {"ubyte": 1, "ushort": 2, "dwordx3": 12}


def _scalar_load(w: Waves, ins: Instruction) -> None:
    dst, base, offset = ins.operands
    size = (_SCALAR | _SCALAR_RDNA4)[ins.name.rpartition("_")[2]]
    address = w.scalar64(base) + w.scalar(offset).astype(np.uint64) + np.uint64(ins.number("offset"))
    lanes = np.zeros((len(w), w.size), np.bool_)
    lanes[:, 0] = True
    read = w.machine.memory.read
    raw: Any = w.machine.touch(w, lanes, address[:, None], size, lambda at: read(_checked(at, size), size))
    words = raw.view(np.uint32 if size % 4 == 0 else np.uint16 if size == 2 else np.uint8)
    for i in range(words.shape[1]):
        w.set_s(dst.index + i, words[:, i])


_LOADS = ("ubyte", "sbyte", "ushort", "sshort", "dword", "dwordx2", "dwordx3", "dwordx4")
_STORES = ("byte", "short", "byte_d16_hi", "short_d16_hi", "dword", "dwordx2", "dwordx3", "dwordx4")
TABLE = {
    **{f"{k}_load_{s}": f for k, f in (("buffer", _buffer), ("global", _global)) for s in _LOADS},
    **{f"{k}_store_{s}": f for k, f in (("buffer", _buffer), ("global", _global)) for s in _STORES},
    **{f"global_load_lds_{s}": _global_to_lds for s in ("dword", "dwordx3", "dwordx4")},
    **{f"s_load_{kind}": _scalar_load for kind in _SCALAR},
}
RDNA4 = {f"s_load_{kind}": _scalar_load for kind in _SCALAR_RDNA4}
