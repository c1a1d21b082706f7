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

from . import control, scalar
from .errors import EmulationError, Unsupported
from .instructions import BESIDE, TABLES
from .lds import Lds
from .memory import Memory
from .parse import EXEC, NULL, TTMP, VCC, Instruction, Program
from .profile import Profile
from .state import SGPRS, Waves
from .targets import TARGETS
from .undefined import filling, require_defined

MOST_LANES = 512 * 64
"""Lanes of waves that run in step at most; further workgroups run after them."""


@dataclass(frozen=True)
class Pointer:
    """A tensor argument: an address in the launch's memory."""

    address: int


Grid = int | tuple[int, ...]
"""Workgroups along x, or along x, y and z."""


@dataclass
class Counts:
    """What a launch did: instructions over waves, two in one being one, and over lanes (those of a wave for a vector
    instruction, of two in one twice, 1 for a scalar one). Twins count once.
    """

    waves: int = 0
    instructions: int = 0
    lane_instructions: int = 0


class Machine:
    """One launch of one program.

    twins: run every wave twice, with opposite bits in registers and LDS at first, and look for what depends on them
    (undefined.py); else they hold ones. profile: what counts the accesses to memory and LDS. By instruction of the program:
    executed: how many waves executed it; run_by: what runs it, which controls may change. most: basic blocks run before that
    is taken for an endless loop.
    """

    def __init__(
        self, program: Program, mem: Memory, lds_bytes: int, twins: bool = True, profile: Profile | None = None
    ) -> None:
        target = TARGETS.get(program.target)
        if target is None or program.wave_size != target.lanes:
            raise Unsupported(f"target {program.target} with waves of {program.wave_size}")
        if program.directives.get("private_segment_fixed_size") and program.directives.get(
            "user_sgpr_private_segment_buffer"
        ):
            raise Unsupported("scratch memory that goes through a buffer")
        self.target, self.table = target, TABLES[target.generation]
        self.program, self.memory, self.twins, self.profile = program, mem, twins, profile
        self.lds_bytes = (lds_bytes + program.directives.get("group_segment_fixed_size", 0) + 3) & ~3
        self.fnuz = target.fnuz
        self.executed = [0] * len(program.code)
        self.most = 2_000_000
        self.run_by = [self.table.get(i.name) for i in program.code]
        self._waves, self._first, self.grid = 0, 0, (1, 1, 1)
        self.lds: Lds
        self.scratch: NDArray[np.uint32]
        names = {part.name for i in program.code for part in (i, *i.pair)}
        unknown = sorted(n for n in names if n not in self.table and n not in BESIDE)
        if unknown:
            raise Unsupported(f"{program.name}: unknown instructions: {' '.join(unknown)}")
        self._named = [i.registers for i in program.code]
        self._issued = [control.issued(i, target) for i in program.code]
        self._lanes = [
            1 if i.name.startswith(("s_", "v_s_")) else target.lanes * max(1, len(i.pair)) for i in program.code
        ]
        starts = {*program.labels.values()}
        self._ends = [i + 1 in starts for i in range(len(program.code))]

    @property
    def counts(self) -> Counts:
        """Of all launches so far."""
        total = sum(n * lanes for n, lanes in zip(self.executed, self._lanes, strict=True))
        return Counts(self._waves, sum(self.executed), total)

    # --- entry --------------------------------------------------------------------------------------------------

    def arguments(self, values: Sequence[Any]) -> bytes:
        """The kernel argument segment. Visible arguments beyond `values` are null; hidden ones describe the grid."""
        data = bytearray(self.program.directives["kernarg_size"])
        visible = [a for a in self.program.arguments if not a[2].startswith("hidden_")]
        if len(values) > len(visible):
            raise EmulationError(f"{len(values)} arguments for {len(visible)}")
        hidden = {"grid_dims": max(i + 1 for i in range(3) if i == 0 or self.grid[i] > 1)}
        for axis, blocks, lanes_of_group in zip("xyz", self.grid, (self.program.workgroup_size, 1, 1), strict=True):
            hidden |= {f"block_count_{axis}": blocks, f"group_size_{axis}": lanes_of_group, f"remainder_{axis}": 0}
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

    def _entry(self, groups: NDArray[np.int64], kernarg: int, data: bytes) -> Waves:
        d = self.program.directives
        for name in ("dispatch_ptr", "queue_ptr", "dispatch_id", "flat_scratch_init", "private_segment_size"):
            if d.get(f"user_sgpr_{name}"):
                raise Unsupported(f"user SGPRs for {name}")
        lanes = self.target.lanes
        per, times = -(-self.program.workgroup_size // lanes), 2 if self.twins else 1
        n = len(groups) * per * times
        group = np.repeat(groups - self._first, per * times) * times + np.tile(np.arange(times), len(groups) * per)
        wave = np.tile(np.repeat(np.arange(per), times), len(groups))
        accumulators = max(0, d["next_free_vgpr"] - d.get("accum_offset", d["next_free_vgpr"]))
        v = self._filled((d["next_free_vgpr"], n, lanes), 1)
        w = Waves(self, v, self._filled((accumulators, n, lanes), 1), self._filled((SGPRS, n), 1), group, wave)
        w.twins, w.keeps_halves = self.twins, self.target.keeps_halves
        w.s[NULL:] = 0
        w.v[0] = (w.wave[:, None] * lanes + np.arange(lanes)).astype(np.uint32)
        # a descriptor for scratch memory, which is not used, comes first on gfx90a
        place = 4 if d.get("user_sgpr_private_segment_buffer") else 0
        w.set_s64(place, np.full(n, kernarg, np.uint64))
        place += 2
        for i in range(d.get("user_sgpr_kernarg_preload_length", 0)):
            at = 4 * (i + d.get("user_sgpr_kernarg_preload_offset", 0))
            w.set_s(place, int.from_bytes(data[at : at + 4].ljust(4, b"\0"), "little"))
            place += 1
        wanted = [a for a in "xyz" if d.get(f"system_sgpr_workgroup_id_{a}")]
        # gfx11 has at least 16 user and system SGPRs together; nothing is in those that fill up
        if place < d["user_sgpr_count"] == 16 - len(wanted) and self.target.generation == "rdna3":
            place = d["user_sgpr_count"]
        if place != d["user_sgpr_count"]:
            raise Unsupported(f"{d['user_sgpr_count']} user SGPRs, of which {place} are known")
        ids = [np.repeat(i, per * times).astype(np.uint32) for i in np.unravel_index(groups, self.grid, order="F")]
        if self.target.ttmp_ids:
            w.set_s(TTMP + 9, ids[0])
            w.set_s(TTMP + 7, ids[1] | ids[2] << np.uint32(16))
            # and the wave's number in bits 25 to 29
            w.set_s(TTMP + 8, w.s[TTMP + 8] & np.uint32(0xC1FFFFFF) | wave.astype(np.uint32) << np.uint32(25))
        else:
            for i, axis in enumerate(wanted):
                w.set_s(place + i, ids["xyz".index(axis)])
        w.set_mask(EXEC, np.full(n, (1 << lanes) - 1, np.uint64))
        w.mode = d["float_round_mode_32"] | d["float_round_mode_16_64"] << 2 | d["float_denorm_mode_32"] << 4
        w.mode |= d["float_denorm_mode_16_64"] << 6 | d.get("dx10_clamp", 0) << 8 | d.get("ieee_mode", 0) << 9
        w.mode |= d["fp16_overflow"] << 23
        scalar.require_mode(w.mode, self.target)
        w.pc = self.program.after_preload
        return w

    def _filled(self, shape: tuple[int, ...], axis: int) -> NDArray[np.uint32]:
        return filling(shape, axis) if self.twins else np.full(shape, 0xFFFFFFFF, np.uint32)

    def _fresh_lds(self, groups: int) -> Lds:
        lds = Lds(groups, self.lds_bytes)
        lds.data[...] = self._filled((groups, lds.data.shape[1] // 4), 0).view(np.uint8)
        return lds

    def unknown(self, w: Waves) -> NDArray[np.uint32]:
        """[n, lanes]: what the hardware leaves undefined in a result."""
        return filling((len(w), w.size), 0) if w.twins else np.full((len(w), w.size), 0xFFFFFFFF, np.uint32)

    # --- running ------------------------------------------------------------------------------------------------

    def run(self, grid: Grid, values: Sequence[Any]) -> Counts:
        """Start the workgroups of `grid` and run them to their ends."""
        x, y, z = (*(grid if isinstance(grid, tuple) else (grid,)), 1, 1)[:3]
        self.grid = x, y, z
        data = self.arguments(values)
        kernarg = self.memory.add(np.frombuffer(bytearray(data), np.uint8))
        if self.profile is not None:
            self.profile.left_out.add(len(self.memory.regions) - 1)
        lanes = self.target.lanes
        per = -(-self.program.workgroup_size // lanes)
        if self.program.workgroup_size % lanes:
            raise Unsupported("workgroups of parts of waves")
        together = max(1, MOST_LANES // (per * lanes))
        words = -(-self.program.directives.get("private_segment_fixed_size", 0) // 4)
        with np.errstate(all="ignore"):
            for self._first in range(0, x * y * z, together):
                groups = np.arange(self._first, min(x * y * z, self._first + together))
                count = len(groups) * (2 if self.twins else 1)
                self.lds = self._fresh_lds(count)
                self.scratch = self._filled((count, per, lanes, words), 0)
                self._alive = np.full(count, per)
                self._waves += len(groups) * per
                self._run_all(self._entry(groups, kernarg, data))
        return self.counts

    def _run_all(self, start: Waves) -> None:
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
            if steps > self.most:
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
        self.executed[at] += len(w) // 2 if w.twins else len(w)
        if name in control.CONDITIONS:
            return self._branch(w, ins)
        if (wait := control.WAITS.get(name)) is not None:
            wait(w, ins)
        elif name == "s_endpgm":
            np.subtract.at(self._alive, w.group, 1)
            return []
        elif name in ("s_barrier", "s_barrier_wait"):
            control.require_written(w)
            if w.signalled is (name == "s_barrier"):
                raise EmulationError("a wait at a barrier without a signal to it, or a signal twice")
            w.signalled = False
            w.pc += 1
            waiting.append(w)
            return []
        elif name not in control.NOTHING:
            if w.pending:
                control.require_settled(w, self._named[at], self._issued[at])
            run = self.run_by[at]
            assert run is not None
            run(w, ins)
            if (entry := self._issued[at]) is not None:
                control.note(w, entry)
        return None

    def _branch(self, w: Waves, ins: Instruction) -> list[Waves]:
        target = self.program.labels[ins.operands[0].text]
        taken = control.CONDITIONS[ins.name](w)
        if w.twins:
            # of a mask every bit counts, also where one alone would decide
            whole = w.mask(VCC) if "vcc" in ins.name else taken
            require_defined(w, "the condition of a branch", whole)
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

    def place(self, group: int) -> str:
        """A workgroup of those that run now, as its number or numbers."""
        number = self._first + (group // 2 if self.twins else group)
        if self.grid[1:] == (1, 1):
            return str(number)
        return str(tuple(int(i) for i in np.unravel_index(number, self.grid, order="F")))

    def touch(
        self,
        w: Waves,
        active: NDArray[np.bool_],
        addresses: Any,
        size: int,
        access: Callable[[Any], Any],
        store: bool = False,
    ) -> Any:
        """An access to memory by the `active` lanes, `size` bytes each from the addresses [n, lanes or 1] on: `access` is
        given those of the active lanes. An error names the wave and lane.
        """
        addresses = np.broadcast_to(addresses, active.shape)
        at = addresses[active]
        if w.twins:
            require_defined(w, "an address", at, active)
        try:
            made = access(at)
        except EmulationError as error:
            if error.access is not None:
                wave, lane = np.argwhere(active)[error.access]
                where = f"workgroup {w.place(int(wave))}, wave {w.wave[wave]}, lane {lane}"
                error.args = (f"{error.args[0]} ({where})",)
            raise
        if self.profile is not None:
            step = 2 if w.twins else 1
            self.profile.memory(self.memory, addresses[::step], active[::step], size, store)
        return made

    def touch_lds(self, w: Waves, at: NDArray[np.int64], size: int) -> None:
        """An access to LDS, `size` bytes from the places `at` of the lanes that are on."""
        if w.signalled:
            raise Unsupported("an access to LDS between the signal to a barrier and the wait for it")
        if w.twins:
            require_defined(w, "an LDS address", at, w.exec)
        if self.profile is not None:
            places = np.zeros(w.exec.shape, np.int64)
            places[w.exec] = at
            step = 2 if w.twins else 1
            load = self.program.code[w.pc].name.startswith(("ds_read", "ds_load"))
            self.profile.lds(w.pc, places[::step], w.exec[::step], size, load)
