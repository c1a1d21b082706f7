"""Waves that run in step: registers as arrays over register × wave × lane, and how operands read and write them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EmulationError, Unsupported
from .parse import EXEC, NULL, VCC, Operand
from .undefined import require_defined

U32, U64 = NDArray[np.uint32], NDArray[np.uint64]
SGPRS = NULL + 2

_MASKS: dict[int, Any] = {32: np.uint32, 64: np.uint64}
"""By lanes of a wave."""


def lanes_of(masks: NDArray[Any]) -> NDArray[np.bool_]:
    """[n] masks of 32 or 64 bits as [n, 32 or 64] booleans."""
    bytes_ = np.ascontiguousarray(masks).view(np.uint8).reshape(len(masks), -1)
    return np.unpackbits(bytes_, axis=1, bitorder="little").view(np.bool_)


def mask_of(lanes: NDArray[np.bool_]) -> NDArray[Any]:
    """[n, 32 or 64] booleans as [n] masks."""
    return np.packbits(lanes, axis=1, bitorder="little").view(_MASKS[lanes.shape[1]]).reshape(-1)


class Waves:
    """State of n waves with one program counter.

    v, a: [registers, n, size]; size: lanes, 64 or 32; s: [SGPRS, n], with VCC, M0, EXEC and `null` at their numbers; scc:
    [n]; group, wave: [n], the workgroup and the wave's number in it. mode: the MODE register, alike in all. pending: what
    is outstanding, see control.py. machine: memory and LDS of the launch. twins: whether waves 2i and 2i + 1 are one wave
    with two fillings, see undefined.py; they are never parted. keeps_halves: as in targets.py. signalled: whether they have
    told a barrier that they will wait for it.

    Masks of lanes are 64 bits, in waves of 32 lanes 32.
    """

    twins = False
    keeps_halves = False
    signalled = False

    def __init__(self, machine: Any, v: U32, a: U32, s: U32, group: NDArray[np.int64], wave: NDArray[np.int64]) -> None:
        self.machine, self.v, self.a, self.s, self.group, self.wave = machine, v, a, s, group, wave
        self.size = v.shape[2]
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
        made.scc = self.scc[chosen]
        return made._alike(self)

    def _alike(self, other: Waves) -> Waves:
        """With all that is alike in waves that run in step."""
        self.pc, self.mode, self.pending, self.signalled = other.pc, other.mode, other.pending, other.signalled
        self.twins, self.keeps_halves = other.twins, other.keeps_halves
        return self

    @property
    def key(self) -> tuple[Any, ...]:
        """Groups with equal keys may run as one."""
        return self.pc, self.mode, self.pending, self.signalled

    @staticmethod
    def joined(parts: list[Waves]) -> Waves:
        def glue(name: str, axis: int) -> Any:
            return np.concatenate([getattr(p, name) for p in parts], axis=axis)

        first = parts[0]
        if len(parts) == 1:
            return first
        made = Waves(first.machine, glue("v", 1), glue("a", 1), glue("s", 1), glue("group", 0), glue("wave", 0))
        made.scc = glue("scc", 0)
        return made._alike(first)

    def place(self, row: int) -> str:
        """The workgroup of a wave, for messages."""
        return str(self.machine.place(int(self.group[row])))

    # --- masks --------------------------------------------------------------------------------------------------

    @property
    def exec(self) -> NDArray[np.bool_]:
        """[n, size]: the lanes that are on."""
        if self._exec is None:
            self._exec = lanes_of(self.mask(EXEC))
            if self.twins:
                require_defined(self, "EXEC", self._exec)
            self._full = bool(self._exec.all())
        return self._exec

    @property
    def full(self) -> bool:
        """Whether every lane is on."""
        return self._full if self._exec is not None else bool(self.exec.all())

    def mask(self, index: int) -> NDArray[Any]:
        """[n]: a mask of lanes in scalar registers."""
        return self.s64(index) if self.size == 64 else self.s[index]

    def set_mask(self, index: int, value: NDArray[Any]) -> None:
        (self.set_s64 if self.size == 64 else self.set_s)(index, value)

    # --- scalar registers ---------------------------------------------------------------------------------------

    def s64(self, index: int) -> U64:
        return self.s[index].astype(np.uint64) | (self.s[index + 1].astype(np.uint64) << np.uint64(32))

    def set_s(self, index: int, value: Any) -> None:
        if index >= NULL:
            return
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
        """[n, size]: a lane mask."""
        if op.kind == "s" and op.index == EXEC:
            return self.exec
        return lanes_of(self.scalar64(op) if self.size == 64 else self.scalar(op))

    def set_lanes(self, op: Operand | None, lanes: NDArray[np.bool_]) -> None:
        """Write a lane mask (VCC without an operand); lanes that are off become 0."""
        lanes = np.broadcast_to(lanes, (len(self), self.size))
        self.set_mask(VCC if op is None else op.index, mask_of(lanes if self.full else lanes & self.exec))

    # --- vector registers ---------------------------------------------------------------------------------------

    def read(self, op: Operand, word: int = 0, width: int = 32) -> U32:
        """[n or 1, size or 1]: 32 bits of a source, number `word` of a wider one; constants as `width` bits say."""
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
        """[n or 1, size or 1]: a 64-bit source."""
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

    def write_half(self, op: Operand, bits: Any, high: bool) -> None:
        """Write 16 bits to one half of a vector register; the other half stays."""
        before = self.read(op)
        self.write(
            op,
            (before & np.uint32(0xFFFF)) | (bits << np.uint32(16)) if high else (before & np.uint32(0xFFFF0000)) | bits,
        )

    def write64(self, op: Operand, value: U64) -> None:
        self.write(op, (value & np.uint64(0xFFFFFFFF)).astype(np.uint32), 0)
        self.write(op, (value >> np.uint64(32)).astype(np.uint32), 1)
