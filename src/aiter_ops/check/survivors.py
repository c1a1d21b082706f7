"""Why a mutant survives: arguments that it keeps the program's meaning, each looked for by running it. Every argument is asked
over inputs of other values and, where the same program serves them, of other sizes.

- ``waits``: it weakens a wait, and on every path through the changed program, whatever its branches decide, no register is
  named that an outstanding load will write and no barrier reached with accesses to LDS outstanding: another wait covers it.
  Of a wait for stores alone (RDNA): with all inputs no launch reads what it stored. Or it is a barrier of a single wave.
- ``same result``: on registers of random bits, of equal numbers and of the instruction's constants the changed instruction
  writes what the old one does, but for the sign of a zero and the payload of a NaN.
- ``same values``: with all inputs the changed instruction writes what the old one does, and what the two read is the same with
  all of them: it depends on neither values nor sizes, but on the wave and lane alone. Or it reads another register, and that
  is so of the two registers, which hold the same.
- ``same register``: it reads another register, and the two held the same in every lane with all inputs, in at least MANY
  different states: halves of a wave that are copies, say.
- ``sizes``: the straight run of instructions around it (up to 48 before and 64 after, without a branch) makes the same
  accesses (stores of a wave: the same to the same places, from whichever lanes) and leaves the same in every register that is
  read later, on registers of random bits, but for those that hold sizes or indices, which are not negative and up to eight
  times as large as any seen, for divisors, which are not zero, and for those that depend on wave and lane alone. So of the
  steps of an integer division: a better estimate is not needed where corrections follow.
- ``thrown away``: wherever the changed instruction writes something else, anything may stand: undefined values put there
  reach no store, address, EXEC or branch, with all inputs.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from aiter_ops.amdgcn import EmulationError, Machine, Program, instruction
from aiter_ops.amdgcn.parse import Instruction
from aiter_ops.amdgcn.state import Waves
from aiter_ops.amdgcn.undefined import filling
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform
from aiter_ops.core.samples import Sample

from .emulate import emulate, rescaled, special
from .mutate import Mutant
from .quotient import in_quotient
from .registers import bank, reads, table_of, target_of
from .touched import Touched
from .waits import waits_enough
from .watch import MOST_ROWS, Rows, Seen, apart, fill, may_differ, note, random_waves, watch
from .window import Window

ARGUMENTS = (
    "waits",
    "same result",
    "same values",
    "same register",
    "sizes",
    "thrown away",
    "bound",
    "quotient",
    "same bits",
)
_OUTWARD = ("_store_", "ds_write", "ds_add", "_atomic_", "_lds_")


MANY = 16
"""States of a register over all inputs from which on it counts as one that follows what the inputs hold."""


def more_inputs(op: Op, sample: Sample, seeds: Sequence[int] = (1, 2, 3)) -> Iterator[Sample]:
    """The same arguments with other values: drawn anew, and of the first seed with rows of other sizes."""
    for seed in seeds:
        for again in op.samples(size="small", seed=seed):
            if again.name == sample.name:
                yield again
                if seed != seeds[0]:
                    break
                if (odd := special(again)) is not None:
                    yield odd
                for low, high in ((-12, 12), (-3, 3)):
                    if (other := rescaled(again, low, high)) is not None:
                        yield other


def arguments(
    op: Op,
    inputs: Sequence[Sample],
    target: Platform,
    mutants: Sequence[Mutant],
    others: Sequence[Sample] = (),
    touched: Callable[[Sample], frozenset[Mutant]] | None = None,
) -> dict[Mutant, str | None]:
    """One of ARGUMENTS why each mutant that no input caught keeps the meaning, or None. inputs: of one size; others: of other
    sizes. touched: as for `caught`; made of `mutants` where it is not given.
    """
    touched = touched or Touched(op, target, mutants)
    every = [*inputs, *others]
    table = table_of(target_of(target.arch))
    known = [m for m in mutants if instruction(m.before).name in table and instruction(m.after).name in table]
    inward = [m for m in known if not any(word in m.before for word in _OUTWARD)]
    seen = watch(op, every, target, [m for m in inward if apart(m)])
    programs = _programs(op, inputs[0], target, mutants)
    found: dict[Mutant, str | None] = {m: why for m in seen if (why := _same(seen[m]))}
    # rounding to fp16 hides last bits of a quotient from a window: a division of floats is no division of sizes
    open_ = [m for m in seen if m not in found and not in_quotient(m, programs[m])]
    of_open = {m: programs[m] for m in open_}
    found |= dict.fromkeys(_same_for_sizes(op, every, len(inputs), target, of_open), "sizes")
    every.sort(key=elements)  # an argument ends where the first input is against it
    stored = _Stored(op, target)
    for m in mutants:
        if m in found:
            continue
        if m.kind == "wait" and _waits(op, every, target, m, programs[m]):
            found[m] = "waits"
        elif m in inward and _Harm(m).none(op, [s for s in every if m in touched(s)], target):
            found[m] = "thrown away"
        elif m in known and _bounds_records(op, inputs[0], target, m, programs[m]):
            found[m] = "bound"
        elif not any(m in touched(s) for s in every):
            found[m] = None  # what no input tells shows nothing
        elif m in known and in_quotient(m, programs[m]):
            found[m] = "quotient"
        elif all(re.match(_EXACT, old.text) for old, _ in m.changed):
            same = all(stored.same(s, m) for s in every if m in touched(s))
            found[m] = "same bits" if same else None
        else:
            found[m] = None
    return found


def _waits(op: Op, inputs: Sequence[Sample], target: Platform, mutant: Mutant, program: Program) -> bool:
    """Whether a weaker wait is enough, or a barrier gone one for a single wave. A wait for stores, where they are counted
    apart, is for what other waves read, so nothing that a launch stored may be read in it.
    """
    if mutant.before.startswith("s_barrier"):
        return program.workgroup_size <= program.wave_size
    if not waits_enough(mutant.change(program)):
        return False
    if not re.match(r"s_wait(cnt_vscnt|_storecnt)", mutant.before):
        return True
    both: list[bool] = []

    def note(job: Any, kernel: Any, machine: Machine) -> None:
        if mutant.is_in(machine.program) and (moved := machine.profile) is not None:
            pairs = ((moved.read[r], moved.written[r]) for r in moved.written if r in moved.read)
            both.append(any((read & written).any() for read, written in pairs))

    for sample in inputs:
        emulate(op, sample, target, seen=note)
    return bool(both) and not any(both)


_EXACT = (
    r"v_(mov|cmp|cndmask|max|min|readlane|permlane|swap)|\w+_dpp |ds_(swizzle|bpermute|permute)"
    r"|s_cselect_b32 .*0x80000000"  # the offset of what is masked
)


def elements(sample: Sample) -> int:
    """Of all tensors of a sample."""
    return sum(a.numel() for a in (*sample.args, *sample.kwargs.values()) if isinstance(a, torch.Tensor))


class _Stored:
    """What programs leave in memory, of those that were not changed once for each sample."""

    def __init__(self, op: Op, target: Platform) -> None:
        self.op, self.target = op, target
        self.unchanged: dict[int, list[list[bytes]]] = {}

    def same(self, sample: Sample, mutant: Mutant) -> bool:
        """Whether every store of the old and of the mutated program writes the same to the same place."""
        if id(sample) not in self.unchanged:
            self.unchanged[id(sample)] = self._by(sample, None)
        try:
            return self._by(sample, mutant.change) == self.unchanged[id(sample)]
        except EmulationError:
            return False

    def _by(self, sample: Sample, change: Callable[[Program], Program] | None) -> list[list[bytes]]:
        held: list[list[bytes]] = []

        def note(job: Any, kernel: Any, machine: Machine) -> None:
            # but for the kernel arguments, which hold addresses
            left = machine.profile.left_out if machine.profile else set()
            held.append(sorted(r.tobytes() for i, r in enumerate(machine.memory.regions) if i not in left))

        emulate(self.op, sample, self.target, change, seen=note)
        return held


class _Harm:
    """Puts undefined values wherever a changed instruction writes something else than the old one."""

    def __init__(self, mutant: Mutant) -> None:
        self.seen = Seen(mutant, instruction(mutant.before), instruction(mutant.after))

    def none(self, op: Op, inputs: Sequence[Sample], target: Platform) -> bool:
        """Whether they do no harm with any of the inputs, and were put somewhere."""
        for sample in inputs:
            self.seen.read.append([set() for _ in self.seen.sources])
            try:
                emulate(op, sample, target, prepare=self._prepare)
            except EmulationError:
                return False
        return self.seen.differs

    def _prepare(self, machine: Machine) -> None:
        if self.seen.mutant.is_in(machine.program):
            machine.run_by[self.seen.mutant.place] = self._run

    def _run(self, w: Waves, ins: Instruction) -> None:
        if (found := self.seen.run(w, ins)) is None:
            return
        v, a, s, scc = found
        np.copyto(w.v, filling(w.v.shape, 1), where=v)
        np.copyto(w.a, filling(w.a.shape, 1), where=a)
        np.copyto(w.s, filling(w.s.shape, 1), where=s)
        w.scc = np.where(scc, np.arange(len(w)) % 2 == 0, w.scc)
        w._exec = None


def _same(seen: Seen) -> str | None:
    """``same result``, ``same values`` or ``same register`` of what a watch saw, or None."""
    if not seen.runs:
        return None
    if not may_differ(seen.old, seen.new, seen.full, target=seen.target).any():
        return "same result"
    if seen.differs:
        return None
    ran = [one for one in seen.read if one[0]]
    whole = all(len(rows) < MOST_ROWS for one in ran for rows in one)
    if whole and len(ran) > 1 and all(one == ran[0] for one in ran):
        return "same values"
    return _equal_registers(seen, ran) if seen.mutant.kind == "operand" else None


def _equal_registers(seen: Seen, ran: list[list[Rows]]) -> str | None:
    """``same values`` where the registers in which the two instructions differ held one state for each wave with all inputs,
    the same in both; ``same register`` where they were in many states, always the same in both; or None.
    """
    places = [
        at
        for at, register in enumerate(seen.sources)
        if register in reads(seen.old, seen.target) ^ reads(seen.new, seen.target)
    ]
    held = [{row for one in ran for row in one[at]} for at in places]
    if len(held) < 2 or any(one != held[0] for one in held):
        return None
    if len(ran) > 1 and len(held[0]) == len({wave for wave, _ in held[0]}):
        return "same values"
    return "same register" if len({row for _, row in held[0]}) >= MANY else None


def _same_for_sizes(
    op: Op, every: Sequence[Sample], alike: int, target: Platform, programs: Mapping[Mutant, Program]
) -> list[Mutant]:
    """The mutants whose windows leave the same in every register that is read later, whatever the sizes and values are.
    alike: how many of the inputs, from the first on, are of one size.
    """
    windows = [
        _Observed(m, Window.around(p, m.place, instruction(m.after), loads))
        for m, p in programs.items()
        for loads in (True, False)
    ]
    for sample in every:
        for one in windows:
            one.start()

        def prepare(machine: Machine) -> None:
            by_place: dict[int, list[_Observed]] = {}
            for one in windows:
                if one.mutant.is_in(machine.program):
                    for place in {one.window.start, *one.loaded}:
                        by_place.setdefault(place, []).append(one)
            for place, some in by_place.items():
                machine.run_by[place] = _noting(place, some)

        emulate(op, sample, target, prepare=prepare)
    kept: list[Mutant] = []
    for one in windows:
        if one.mutant not in kept and one.same(alike):
            kept.append(one.mutant)
    return kept


class _Observed:
    """A window, what was in its inputs, and what its loads brought, by input of the run."""

    def __init__(self, mutant: Mutant, window: Window) -> None:
        self.mutant, self.window = mutant, window
        self.read: list[list[Rows]] = []
        self.loaded: dict[int, list[list[Rows]]] = {place: [] for place in window.loads}

    def start(self) -> None:
        self.read.append([set() for _ in self.window.inputs])
        for place, found in self.loaded.items():
            found.append([set() for _ in self.window.loads[place]])

    def same(self, alike: int) -> bool:
        """Whether the window leaves the same, whatever sizes and values there are."""
        window, loads = self.window, self.window.loads
        target = target_of(self.mutant.target)
        code = window.program.code[window.start : window.end]
        waves = random_waves(*code, instruction(self.mutant.after), target=target)

        fresh = random_waves(target=target)

        def load(w: Waves, place: int) -> None:
            for kind, number in loads[place]:
                bank(w, kind)[number] = bank(fresh, kind)[number]
            fill(w, loads[place], self.loaded[place], alike, seed=place)

        if not fill(waves, window.inputs, self.read, alike):
            return False
        for kind, number in window.divisors:
            held = waves.s if kind == "s" else waves.v
            held[number] = np.maximum(held[number], 1)
        return window.same(waves, load)


def _noting(place: int, some: list[_Observed]) -> Callable[[Waves, Instruction], None]:
    table = table_of(target_of(some[0].mutant.target))

    def run(w: Waves, ins: Instruction) -> None:
        for one in some:
            if place == one.window.start:
                note(w, one.window.inputs, one.read[-1], True)
        table[ins.name](w, ins)
        for one in some:
            if place in one.loaded:
                note(w, one.window.loads[place], one.loaded[place][-1], True)

    return run


def _programs(op: Op, sample: Sample, target: Platform, mutants: Sequence[Mutant]) -> dict[Mutant, Program]:
    """The programs of the mutants, which the sample starts."""
    found: list[Program] = []
    emulate(op, sample, target, prepare=lambda machine: found.append(machine.program))
    return {m: next(p for p in found if m.is_in(p)) for m in mutants}


def _bounds_records(op: Op, sample: Sample, target: Platform, mutant: Mutant, program: Program) -> bool:
    """Whether the instruction writes word 2 of a descriptor, and still bounds it from the tensors' sizes to 0x80000000."""
    if not mutant.before.startswith("s_mov_b32"):
        return False
    dst = instruction(mutant.before).operands[0]
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
    table = table_of(target_of(target.arch))

    def note(w: Waves, ins: Instruction) -> None:
        table[ins.name](w, ins)
        beside = w.part(np.ones(len(w), np.bool_))
        new = instruction(mutant.after)
        table[new.name](beside, new)
        seen.extend(int(x) for x in beside.s[dst.index])

    def prepare(machine: Machine) -> None:
        if mutant.is_in(machine.program):
            machine.run_by[mutant.place] = note

    emulate(op, sample, target, prepare=prepare)
    return bool(seen) and largest <= min(seen) and max(seen) <= 0x80000000
