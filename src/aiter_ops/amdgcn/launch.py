"""Running a kernel: entry state, scheduling of waves, barriers (LLVM, "User Guide for AMDGPU Backend", sections "Initial
Kernel Execution State" and "Kernel Descriptor").

Waves with the same program counter run as one. Where they part, the group with the lowest program counter goes first,
a basic block at a time, and groups that meet are joined.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import control, convert, lanes, lds, logic, matrix, memory, packed, scalar, vector
from .errors import EmulationError, Unsupported
from .lds import Lds
from .memory import Memory
from .parse import EXEC, Instruction, Program
from .state import LANES, SGPRS, Waves

TABLE: dict[str, Callable[[Waves, Instruction], None]] = {
    **scalar.TABLE,
    **vector.TABLE,
    **logic.TABLE,
    **convert.TABLE,
    **packed.TABLE,
    **matrix.TABLE,
    **lds.TABLE,
    **memory.TABLE,
    **lanes.TABLE,
}

TARGETS = ("gfx90a", "gfx942", "gfx950")
"""What programs may be compiled for."""

_BESIDE = (*control.CONDITIONS, *control.NOTHING, "s_waitcnt", "s_barrier", "s_endpgm")

_FLAT = {"block_count": 1, "group_size": 1, "remainder": 0}
"""Hidden arguments of the dimensions that a grid here does not have."""

MOST_WAVES = 1024
"""Waves that run in step at most; further workgroups run after them."""


def coverage() -> tuple[str, ...]:
    """Every instruction that is known, without encoding suffixes."""
    return tuple(sorted({*TABLE, *_BESIDE}))


@dataclass(frozen=True)
class Pointer:
    """A tensor argument: an address in the launch's memory."""

    address: int


@dataclass
class Counts:
    """What a launch did: instructions over waves, and over lanes (64 a vector instruction and wave, 1 a scalar one)."""

    waves: int = 0
    instructions: int = 0
    lane_instructions: int = 0


class Machine:
    """One launch of one program. poison: what registers and LDS hold at first."""

    def __init__(self, program: Program, mem: Memory, lds_bytes: int, poison: int = 0xFFFFFFFF) -> None:
        if program.target not in TARGETS or program.wave_size != LANES:
            raise Unsupported(f"target {program.target} with waves of {program.wave_size}")
        if program.directives.get("private_segment_fixed_size"):
            raise Unsupported("scratch memory")
        self.program, self.memory, self.poison = program, mem, poison
        self.lds_bytes = (lds_bytes + program.directives.get("group_segment_fixed_size", 0) + 3) & ~3
        self.fnuz = program.target == "gfx942"
        self.counts = Counts()
        self.lds: Lds
        unknown = sorted({i.name for i in program.code if i.name not in TABLE and i.name not in _BESIDE})
        if unknown:
            raise Unsupported(f"{program.name}: unknown instructions: {' '.join(unknown)}")
        self._named = [i.registers for i in program.code]
        self._issued = [control.issued(i) for i in program.code]
        starts = {*program.labels.values()}
        self._ends = [i + 1 in starts for i in range(len(program.code))]

    # --- entry --------------------------------------------------------------------------------------------------

    def arguments(self, grid: int, values: Sequence[Any]) -> bytes:
        """The kernel argument segment. Visible arguments beyond `values` are null; hidden ones describe the grid."""
        data = bytearray(self.program.directives["kernarg_size"])
        visible = [a for a in self.program.arguments if not a[2].startswith("hidden_")]
        if len(values) > len(visible):
            raise EmulationError(f"{len(values)} arguments for {len(visible)}")
        lanes_of_group = self.program.workgroup_size
        hidden = {"block_count_x": grid, "group_size_x": lanes_of_group, "grid_dims": 1, "remainder_x": 0}
        hidden |= {f"{name}_{axis}": value for axis in "yz" for name, value in _FLAT.items()}
        for offset, size, kind in self.program.arguments:
            if kind.startswith("hidden_") and (value := hidden.get(kind.removeprefix("hidden_"))) is not None:
                data[offset : offset + size] = value.to_bytes(size, "little")
        for value, (offset, size, _) in zip(values, visible, strict=False):
            if isinstance(value, Pointer):
                raw = struct.pack("<Q", value.address)
            elif isinstance(value, float):
                raw = struct.pack("<f" if size == 4 else "<d", value)
            else:
                raw = (int(value) & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
            if len(raw) != size:
                raise EmulationError(f"an argument of {len(raw)} bytes where the kernel has {size}")
            data[offset : offset + size] = raw
        return bytes(data)

    def _entry(self, groups: NDArray[np.int64], first: int, kernarg: int, data: bytes) -> Waves:
        d = self.program.directives
        for name in ("dispatch_ptr", "queue_ptr", "dispatch_id", "flat_scratch_init", "private_segment_size"):
            if d.get(f"user_sgpr_{name}"):
                raise Unsupported(f"user SGPRs for {name}")
        per = -(-self.program.workgroup_size // LANES)
        n = len(groups) * per
        v = np.full((d["next_free_vgpr"], n, LANES), self.poison, np.uint32)
        accumulators = max(0, d["next_free_vgpr"] - d.get("accum_offset", 0))
        a = np.full((accumulators, n, LANES), self.poison, np.uint32)
        s = np.full((SGPRS, n), self.poison, np.uint32)
        w = Waves(self, v, a, s, np.repeat(groups - first, per), np.tile(np.arange(per), len(groups)))
        w.v[0] = (w.wave[:, None] * LANES + np.arange(LANES)).astype(np.uint32)
        # a descriptor for scratch memory, which is not used, comes first on gfx90a
        place = 4 if d.get("user_sgpr_private_segment_buffer") else 0
        w.set_s64(place, np.full(n, kernarg, np.uint64))
        place += 2
        for i in range(d.get("user_sgpr_kernarg_preload_length", 0)):
            at = 4 * (i + d.get("user_sgpr_kernarg_preload_offset", 0))
            w.set_s(place, int.from_bytes(data[at : at + 4].ljust(4, b"\0"), "little"))
            place += 1
        if place != d["user_sgpr_count"]:
            raise Unsupported(f"{d['user_sgpr_count']} user SGPRs, of which {place} are known")
        if d.get("system_sgpr_workgroup_id_x"):
            w.set_s(place, np.repeat(groups, per).astype(np.uint32))
        if d.get("system_sgpr_workgroup_id_y") or d.get("system_sgpr_workgroup_id_z"):
            raise Unsupported("grids of more than one dimension")
        w.set_s64(EXEC, np.full(n, 0xFFFFFFFFFFFFFFFF, np.uint64))
        w.mode = d["float_round_mode_32"] | d["float_round_mode_16_64"] << 2 | d["float_denorm_mode_32"] << 4
        w.mode |= d["float_denorm_mode_16_64"] << 6 | d["dx10_clamp"] << 8 | d["ieee_mode"] << 9
        w.mode |= d["fp16_overflow"] << 23
        scalar.require_mode(w.mode)
        w.pc = self.program.after_preload
        return w

    # --- running ------------------------------------------------------------------------------------------------

    def run(self, grid: int, values: Sequence[Any], most: int = 2_000_000) -> Counts:
        """Start `grid` workgroups and run them to their ends; `most`: steps before that is taken for an endless loop."""
        data = self.arguments(grid, values)
        kernarg = self.memory.add(np.frombuffer(bytearray(data), np.uint8))
        per = -(-self.program.workgroup_size // LANES)
        if self.program.workgroup_size % LANES:
            raise Unsupported("workgroups of parts of waves")
        together = max(1, MOST_WAVES // per)
        with np.errstate(all="ignore"):
            for first in range(0, grid, together):
                groups = np.arange(first, min(grid, first + together))
                self.lds = Lds(len(groups), self.lds_bytes, self.poison)
                self._alive = np.full(len(groups), per)
                self._run_all(self._entry(groups, first, kernarg, data), most)
        return self.counts

    def _run_all(self, start: Waves, most: int) -> None:
        self.counts.waves += len(start)
        ready, waiting, steps = [start], list[Waves](), 0
        while ready or waiting:
            if not ready:
                raise EmulationError("waves wait at a barrier that others never reach")
            lowest = min(w.pc for w in ready)
            first = next(w for w in ready if w.pc == lowest)
            same = [w for w in ready if w.key == first.key]
            ready = [w for w in ready if w.key != first.key]
            w = Waves.joined(same)
            steps += 1
            if steps > most:
                raise EmulationError("no end in sight")
            ready += self._block(w, waiting)
            ready += self._released(waiting)

    def _block(self, w: Waves, waiting: list[Waves]) -> list[Waves]:
        """Run to the end of a basic block; the groups that go on."""
        code = self.program.code
        while True:
            ins = code[w.pc]
            try:
                ended = self._step(w, ins, waiting)
            except EmulationError as error:
                error.where = error.where or f"{self.program.name}, line {ins.line}, {ins.text!r}"
                raise
            if ended is not None:
                return ended
            w.pc += 1
            if self._ends[w.pc - 1]:
                return [w]

    def _step(self, w: Waves, ins: Instruction, waiting: list[Waves]) -> list[Waves] | None:
        """One instruction; None: go on with the next, else the groups that go on elsewhere."""
        name, at = ins.name, w.pc
        self.counts.instructions += len(w)
        self.counts.lane_instructions += len(w) * (1 if name.startswith("s_") else LANES)
        if name in control.CONDITIONS:
            return self._branch(w, ins)
        if name == "s_waitcnt":
            control.waitcnt(w, ins)
        elif name == "s_endpgm":
            np.subtract.at(self._alive, w.group, 1)
            return []
        elif name == "s_barrier":
            control.require_written(w)
            w.pc += 1
            waiting.append(w)
            return []
        elif name not in control.NOTHING:
            if w.pending:
                control.require_settled(w, self._named[at], self._issued[at])
            TABLE[name](w, ins)
            if (entry := self._issued[at]) is not None:
                control.note(w, entry)
        return None

    def _branch(self, w: Waves, ins: Instruction) -> list[Waves]:
        target = self.program.labels[ins.operands[0].text]
        taken = control.CONDITIONS[ins.name](w)
        if taken.all():
            w.pc = target
            return [w]
        w.pc += 1
        if not taken.any():
            return [w]
        gone, stay = w.part(taken), w.part(~taken)
        gone.pc = target
        return [gone, stay]

    def _released(self, waiting: list[Waves]) -> list[Waves]:
        """Groups whose workgroups have all their live waves at the barrier."""
        if not waiting:
            return []
        arrived = np.zeros_like(self._alive)
        for w in waiting:
            np.add.at(arrived, w.group, 1)
        open_ = (arrived == self._alive) & (arrived > 0)
        if not open_.any():
            return []
        self.lds.barrier(np.flatnonzero(open_))
        out, left = [], []
        for w in waiting:
            chosen = open_[w.group]
            if chosen.all():
                out.append(w)
                continue
            if chosen.any():
                out.append(w.part(chosen))
            left.append(w.part(~chosen))
        waiting[:] = left
        return out

    def touch(self, w: Waves, active: NDArray[np.bool_], access: Callable[[], Any]) -> Any:
        """An access to memory by the `active` lanes; an error names the wave and lane."""
        try:
            return access()
        except EmulationError as error:
            at = error.access
            if at is not None:
                wave, lane = np.argwhere(active)[at]
                error.args = (f"{error.args[0]} (workgroup {w.group[wave]}, wave {w.wave[wave]}, lane {lane})",)
            raise
