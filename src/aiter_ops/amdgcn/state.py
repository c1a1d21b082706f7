"""Waves that run in step: registers as arrays over register × wave × lane, and how operands read and write them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EmulationError, Unsupported
from .parse import EXEC, VCC, Operand
from .undefined import require_defined

U32, U64 = NDArray[np.uint32], NDArray[np.uint64]
LANES = 64
SGPRS = 128


def lanes_of(masks: U64) -> NDArray[np.bool_]:
    """[n] 64-bit masks as [n, 64] booleans."""
    bytes_ = np.ascontiguousarray(masks).view(np.uint8).reshape(-1, 8)
    return np.unpackbits(bytes_, axis=1, bitorder="little").view(np.bool_)


def mask_of(lanes: NDArray[np.bool_]) -> U64:
    """[n, 64] booleans as [n] 64-bit masks."""
    return np.packbits(lanes, axis=1, bitorder="little").view(np.uint64).reshape(-1)


class Waves:
    """State of n waves with one program counter.

    v, a: [registers, n, 64]; s: [128, n], with VCC, M0 and EXEC at their encoded numbers; scc: [n]; group, wave:
    [n], the workgroup and the wave's number in it. mode: the MODE register, alike in all. pending: what is
    outstanding, see control.py. machine: memory and LDS of the launch. twins: whether waves 2i and 2i + 1 are one wave
    with two fillings, see undefined.py; they are never parted.
    """

    twins = False

    def __init__(self, machine: Any, v: U32, a: U32, s: U32, group: NDArray[np.int64], wave: NDArray[np.int64]) -> None:
        self.machine, self.v, self.a, self.s, self.group, self.wave = machine, v, a, s, group, wave
        self.scc = np.zeros(len(group), np.bool_)
        self.pc, self.mode = 0, 0
        self.pending: tuple[Any, ...] = ()
        self._exec: NDArray[np.bool_] | None = None
        self._full = False

    def __len__(self) -> int:
        return len(self.group)

    # --- splitting and joining ----------------------------------------------------------------------------------

    def part(self, chosen: NDArray[np.bool_]) -> Waves:
        """The chosen waves, as copies."""
        made = Waves(
            self.machine, self.v[:, chosen], self.a[:, chosen], self.s[:, chosen], self.group[chosen], self.wave[chosen]
        )
        made.scc, made.pc, made.mode, made.pending = self.scc[chosen], self.pc, self.mode, self.pending
        made.twins = self.twins
        return made

    @property
    def key(self) -> tuple[Any, ...]:
        """Groups with equal keys may run as one."""
        return self.pc, self.mode, self.pending

    @staticmethod
    def joined(parts: list[Waves]) -> Waves:
        def glue(name: str, axis: int) -> Any:
            return np.concatenate([getattr(p, name) for p in parts], axis=axis)

        first = parts[0]
        if len(parts) == 1:
            return first
        made = Waves(first.machine, glue("v", 1), glue("a", 1), glue("s", 1), glue("group", 0), glue("wave", 0))
        made.scc, made.pc, made.mode, made.pending = glue("scc", 0), first.pc, first.mode, first.pending
        made.twins = first.twins
        return made

    def place(self, row: int) -> str:
        """The workgroup of a wave, for messages."""
        return str(self.machine.place(int(self.group[row])))

    # --- masks --------------------------------------------------------------------------------------------------

    @property
    def exec(self) -> NDArray[np.bool_]:
        """[n, 64]: the lanes that are on."""
        if self._exec is None:
            self._exec = lanes_of(self.s64(EXEC))
            if self.twins:
                require_defined(self, "EXEC", self._exec)
            self._full = bool(self._exec.all())
        return self._exec

    @property
    def full(self) -> bool:
        """Whether every lane is on."""
        return self._full if self._exec is not None else bool(self.exec.all())

    # --- scalar registers ---------------------------------------------------------------------------------------

    def s64(self, index: int) -> U64:
        return self.s[index].astype(np.uint64) | (self.s[index + 1].astype(np.uint64) << np.uint64(32))

    def set_s(self, index: int, value: Any) -> None:
        self.s[index] = value
        if index >= EXEC:
            self._exec = None

    def set_s64(self, index: int, value: U64) -> None:
        self.set_s(index, (value & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        self.set_s(index + 1, (value >> np.uint64(32)).astype(np.uint32))

    def scalar(self, op: Operand) -> U32:
        """[n]: a 32-bit scalar source."""
        if op.kind == "s":
            return self.s[op.index]
        return np.full(len(self), op.constant(32), np.uint32)

    def scalar64(self, op: Operand) -> U64:
        """[n]: a 64-bit scalar source; 32-bit integer literals are sign-extended as written, floats are f64."""
        if op.kind == "s":
            return self.s64(op.index)
        return np.full(len(self), op.constant(64), np.uint64)

    def lanes(self, op: Operand) -> NDArray[np.bool_]:
        """[n, 64]: a lane mask."""
        return self.exec if op.kind == "s" and op.index == EXEC else lanes_of(self.scalar64(op))

    def set_lanes(self, op: Operand | None, lanes: NDArray[np.bool_]) -> None:
        """Write a lane mask (VCC without an operand); lanes that are off become 0."""
        lanes = np.broadcast_to(lanes, (len(self), LANES))
        self.set_s64(VCC if op is None else op.index, mask_of(lanes if self.full else lanes & self.exec))

    # --- vector registers ---------------------------------------------------------------------------------------

    def read(self, op: Operand, word: int = 0, width: int = 32) -> U32:
        """[n or 1, 64 or 1]: 32 bits of a source, number `word` of a wider one; constants as `width` bits say."""
        if op.kind == "v":
            return self.v[op.index + word]
        if op.kind == "s":
            return self.s[op.index + word][:, None]
        if op.kind == "a":
            return self.a[op.index + word]
        if op.kind == "text":
            raise Unsupported(f"operand {op.text!r}")
        bits = op.constant(width) >> (32 * word)
        return np.full((1, 1), bits & 0xFFFFFFFF, np.uint32)

    def read64(self, op: Operand) -> U64:
        """[n or 1, 64 or 1]: a 64-bit source."""
        low, high = self.read(op, 0, 64), self.read(op, 1, 64)
        return low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))

    def write(self, op: Operand, value: Any, word: int = 0, where: NDArray[np.bool_] | None = None) -> None:
        """Write 32 bits to a vector register in the lanes that are on, or in those of `where`."""
        if op.kind not in "va":
            raise EmulationError(f"{op.text or op.kind} is written as a vector register")
        target = (self.v if op.kind == "v" else self.a)[op.index + word]
        if where is None and self.full:
            target[...] = value
        else:
            np.copyto(target, value, where=self.exec if where is None else where)

    def write64(self, op: Operand, value: U64) -> None:
        self.write(op, (value & np.uint64(0xFFFFFFFF)).astype(np.uint32), 0)
        self.write(op, (value >> np.uint64(32)).astype(np.uint32), 1)
