"""Why a mutant survives: arguments that it keeps the program's meaning, each looked for by running it.

- ``same result``: on registers of random bits the changed instruction writes what the old one does, but for the sign of a
  zero and the payload of a NaN.
- ``thrown away``: wherever the changed instruction writes something else, anything may stand: undefined values put there
  reach no store, address, EXEC or branch, with all inputs.
- ``same values``: with all inputs the changed instruction writes what the old one does, and in the lanes where it could
  write something else (on random bits it does) what it reads does not depend on the tensors' values, but on sizes, lanes and
  workgroups alone.
- ``bound``: it changes the number of records of a buffer descriptor, which bounds nothing here but the offset 0x80000000 of
  masked lanes: any number from a tensor's size to 0x80000000 means the same.
- ``quotient``: it is a step of a division that a later step corrects (of the compiler's, from v_div_scale to v_div_fixup, or
  of a kernel's own q = x · (1 / d), r = x - q · d, q + r · (1 / d)): with all inputs, whose rows differ by up to 2^24 in size,
  the result stays within the op's tolerance.
- ``same bits``: an exchange of lanes, a comparison or a choice (no arithmetic whose rounding could hide it) after which the
  tensors are the same to the bit with all inputs: lanes that hold the same number change places, or write it.

What has none of these is an unexplained survivor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from aiter_ops.amdgcn import EmulationError, Machine, Program, instruction
from aiter_ops.amdgcn.launch import TABLE
from aiter_ops.amdgcn.parse import EXEC, Instruction
from aiter_ops.amdgcn.state import Waves
from aiter_ops.amdgcn.undefined import filling
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform
from aiter_ops.core.samples import Sample

from .emulate import emulate, rescaled, special
from .mutate import Mutant

ARGUMENTS = ("same result", "thrown away", "same values", "bound", "quotient", "same bits")
_OUTWARD = ("_store_", "ds_write", "ds_add", "_atomic_", "_lds_")


def more_inputs(op: Op, sample: Sample, seeds: Sequence[int] = (1, 2, 3, 4)) -> Iterator[Sample]:
    """The same arguments with other values: drawn anew, and with rows of other sizes."""
    for seed in seeds:
        for again in op.samples(size="small", seed=seed):
            if again.name == sample.name:
                yield again
                if (odd := special(again)) is not None:
                    yield odd
                for low, high in ((-12, 12), (-3, 3), (-seed, 2)):
                    if (other := rescaled(again, low, high)) is not None:
                        yield other


def argument(op: Op, inputs: Sequence[Sample], target: Platform, mutant: Mutant) -> str | None:
    """One of ARGUMENTS why a mutant that no input caught keeps the meaning, or None."""
    old, new = instruction(mutant.before), instruction(mutant.after)
    if old.name not in TABLE or new.name not in TABLE:
        return None
    if not any(word in old.name for word in _OUTWARD):
        watch = _Watch(mutant, old, new)
        for poison in (False, True):
            watch.poison = poison
            if found := watch.holds(op, inputs, target):
                return found
    if _bounds_records(op, inputs[0], target, mutant):
        return "bound"
    if _in_quotient(op, inputs[0], target, mutant):
        return "quotient"
    if re.match(_EXACT, mutant.before) and all(_same_bits(op, s, target, mutant) for s in inputs):
        return "same bits"
    return None


_EXACT = r"v_(mov|cmp|cndmask|max|min|readlane|permlane|swap)|\w+_dpp |ds_(swizzle|bpermute|permute)"


def _same_bits(op: Op, sample: Sample, target: Platform, mutant: Mutant) -> bool:
    """Whether every store of the old and of the mutated program writes the same to the same place."""

    def stored(change: Any) -> list[Any]:
        held: list[Any] = []

        def note(job: Any, kernel: Any, machine: Machine) -> None:
            # but for the kernel arguments, which hold addresses
            left = machine.profile.left_out if machine.profile else set()
            held.append(sorted(r.tobytes() for i, r in enumerate(machine.memory.regions) if i not in left))

        emulate(op, sample, target, change, seen=note)
        return held

    return stored(None) == stored(mutant.change)


def _may_differ(old: Instruction, new: Instruction, full: bool) -> Any:
    """[64]: the lanes in which the two write something else on random registers; all, where scalars differ. full: every lane
    is on. Accesses to memory may differ everywhere.
    """
    random = np.random.default_rng(0)
    n = 256

    def bits(*shape: int) -> Any:
        return random.integers(0, 1 << 32, shape, dtype=np.uint32)

    groups = np.zeros(n, np.int64)
    first = Waves(None, bits(128, n, 64), bits(64, n, 64), bits(128, n), groups, groups)
    # small numbers and ordinary floats too
    first.v[:, :64] &= 0xFF
    first.v[:, 64:128] = first.v[:, 64:128] & 0x81FFFFFF | 0x3E000000
    first.mode, first.scc = 0x3F0, bits(n) % 2 == 1
    if full:
        first.set_s64(EXEC, np.full(n, 0xFFFFFFFFFFFFFFFF, np.uint64))
    second = first.part(np.ones(n, np.bool_))
    try:
        with np.errstate(all="ignore"):
            TABLE[old.name](first, old)
            TABLE[new.name](second, new)
    except (EmulationError, AttributeError, IndexError):
        return np.ones(64, np.bool_)
    v, a, s, scc = _differences(first, second)
    if "_f32" in old.name:
        x, y = first.v.view(np.float32), second.v.view(np.float32)
        v &= ~((x == y) | (np.isnan(x) & np.isnan(y)))
    if s.any() or scc.any():
        return np.ones(64, np.bool_)
    return v.any(axis=(0, 1)) | a.any(axis=(0, 1))


def _differences(a: Waves, b: Waves) -> tuple[Any, ...]:
    """Where v, a, s and scc differ."""
    return a.v != b.v, a.a != b.a, a.s != b.s, a.scc != b.scc


class _Watch:
    """Runs the old program, and beside it the changed instruction on a copy of the registers wherever it is executed."""

    def __init__(self, mutant: Mutant, old: Instruction, new: Instruction) -> None:
        self.mutant, self.old, self.new = mutant, old, new
        self.poison = False
        self.runs = 0
        self.sources: list[Any] = []
        self.differs, self.full = False, True

    def holds(self, op: Op, inputs: Sequence[Sample], target: Platform) -> str | None:
        """poison: undefined values instead of what differs do no harm. Else: nothing differs where it could, and there the
        sources are those of the first input.
        """
        seen = []
        self.runs, self.differs, self.full = 0, False, True
        for sample in inputs:
            self.sources = []
            try:
                emulate(op, sample, target, prepare=self._prepare)
            except EmulationError:
                return None
            seen.append(self.sources)
        if not self.runs:
            return None
        if self.poison:
            return "thrown away" if self.differs else None
        lanes = _may_differ(self.old, self.new, self.full)
        if not lanes.any():
            return "same result"
        if self.differs:
            return None

        def alike(one: Any, other: Any) -> bool:
            return one.shape == other.shape and np.array_equal(one[..., lanes], other[..., lanes])

        same = all(len(s) == len(seen[0]) and all(map(alike, s, seen[0])) for s in seen)
        return "same values" if len(inputs) > 1 and same else None

    def _prepare(self, machine: Machine) -> None:
        if self.mutant.is_in(machine.program):
            machine.run_by[self.mutant.place] = self._run

    def _run(self, w: Waves, ins: Instruction) -> None:
        beside = w.part(np.ones(len(w), np.bool_))
        self.sources.append(self._read(w))
        self.full = self.full and w.full
        TABLE[ins.name](w, ins)
        try:
            TABLE[self.new.name](beside, self.new)
        except EmulationError:
            self.differs = True
            if self.poison:
                raise
            return
        self.runs += 1
        v, a, s, scc = _differences(w, beside)
        if not (v.any() or a.any() or s.any() or scc.any()):
            return
        self.differs = True
        if self.poison:
            np.copyto(w.v, filling(w.v.shape, 1), where=v)
            np.copyto(w.a, filling(w.a.shape, 1), where=a)
            np.copyto(w.s, filling(w.s.shape, 1), where=s)
            w.scc = np.where(scc, np.arange(len(w)) % 2 == 0, w.scc)
            w._exec = None

    def _read(self, w: Waves) -> Any:
        """[k, n, 64]: what both instructions read, of the first of the twins; of DPP also what a lane reads of others."""
        shape = len(w) // 2, 64
        parts = [np.broadcast_to(w.scc[::2, None], shape)]
        first = self.old.operands[0]
        for kind, number in sorted(self.old.registers | self.new.registers):
            held = {"v": w.v, "a": w.a, "s": w.s}[kind][number]
            times = sum(o.kind == kind and o.index <= number < o.index + o.count for o in self.old.operands)
            if times > 1 or not (first.kind == kind and first.index <= number < first.index + first.count):
                parts.append(np.broadcast_to(held[::2] if kind != "s" else held[::2, None], shape))
        return np.stack([np.array(p, np.uint32) for p in parts])


def _program(op: Op, sample: Sample, target: Platform, mutant: Mutant) -> Program | None:
    found: list[Program] = []
    emulate(op, sample, target, prepare=lambda m: found.append(m.program) if mutant.is_in(m.program) else None)
    return found[0] if found else None


def _bounds_records(op: Op, sample: Sample, target: Platform, mutant: Mutant) -> bool:
    """Whether the instruction writes word 2 of a descriptor, and still bounds it from the tensors' sizes to 0x80000000."""
    program = _program(op, sample, target, mutant)
    dst = instruction(mutant.before).operands[0]
    if program is None or dst.kind != "s" or not mutant.before.startswith("s_mov_b32"):
        return False
    words = {o.index + 2 for i in program.code if i.name.startswith("buffer_") for o in i.operands if o.count == 4}
    copied = {
        i.operands[1].index
        for i in program.code
        if i.name == "s_mov_b32" and i.operands[0].index in words and i.operands[1].kind == "s"
    }
    if dst.index not in words | copied:
        return False
    largest = max((a.untyped_storage().nbytes() for a in sample.args if isinstance(a, torch.Tensor)), default=0)
    seen: list[int] = []

    def note(w: Waves, ins: Instruction) -> None:
        TABLE[ins.name](w, ins)
        beside = w.part(np.ones(len(w), np.bool_))
        new = instruction(mutant.after)
        TABLE[new.name](beside, new)
        seen.extend(int(x) for x in beside.s[dst.index])

    def prepare(machine: Machine) -> None:
        if mutant.is_in(machine.program):
            machine.run_by[mutant.place] = note

    emulate(op, sample, target, prepare=prepare)
    return bool(seen) and largest <= min(seen) and max(seen) <= 0x80000000


def _in_quotient(op: Op, sample: Sample, target: Platform, mutant: Mutant) -> bool:
    """Whether the instruction takes part in a division: an estimate or a correction whose result flows, through multiply-adds,
    into the last step: v_div_fixup, or q + r · (1 / d) with r = x - q · d of that q.
    """
    program = _program(op, sample, target, mutant)
    if program is None or not re.match(r"v_(div_|rcp_f32|fma|mul_f32|pk_fma|pk_mul)", mutant.before):
        return False
    code = program.code
    ends = [i for i in range(mutant.place, len(code)) if code[i].name == "v_div_fixup_f32" or _corrects(code, i)]
    live = set(_registers(code[mutant.place].operands[0]))
    if mutant.place in ends:
        return True
    for i in range(mutant.place + 1, len(code)):
        ins = code[i]
        accumulates = "fmac" in ins.name
        if any(_registers(o) & live for o in ins.operands[0 if accumulates else 1 :]):
            if i in ends:
                return True
            if not re.match(r"v_(div_|rcp_f32|fma|mul_f32|pk_)", ins.name):
                continue
            live |= _registers(ins.operands[0])
        elif ins.operands and not ins.name.startswith("s_"):
            live -= _registers(ins.operands[0])
    return False


def _corrects(code: list[Instruction], place: int) -> bool:
    """Whether an instruction is q + r · (1 / d) of a remainder r = x - q · d that was made shortly before of the same q."""
    last = code[place]
    if last.name != "v_fmac_f32" or len(last.operands) != 3:
        return False
    q, factors = _registers(last.operands[0]), _registers(last.operands[1]) | _registers(last.operands[2])
    for ins in code[max(place - 24, 0) : place]:
        remainder = ins.name.startswith(("v_fma_f32", "v_fmac_f32", "v_fmamk_f32", "v_fma_mix_f32"))
        if remainder and _registers(ins.operands[0]) & factors and any(_registers(o) & q for o in ins.operands[1:]):
            return True
    return False


def _registers(operand: Any) -> set[tuple[str, int]]:
    return {(operand.kind, operand.index + i) for i in range(operand.count)} if operand.kind in "vsa" else set()
