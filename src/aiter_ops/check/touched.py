"""Which mutants an input can tell at all: such whose changed instruction does something else with it, in one run for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aiter_ops.amdgcn import EmulationError, Machine, control, instruction
from aiter_ops.amdgcn.parse import Instruction
from aiter_ops.amdgcn.state import Waves
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform
from aiter_ops.core.samples import Sample

from .emulate import emulate
from .mutate import Mutant
from .registers import Register, bank, table_of, target_of, writes

_OUTWARD = ("ds_", "buffer_", "global_", "scratch_", "flat_", "s_load")
"""What touches more than registers."""


class Touched:
    """By sample those of `mutants` whose instruction it runs and, where that touches registers alone, with which the changed one
    writes something else or fails. With other mutants the sample runs as it does unchanged.
    """

    def __init__(self, op: Op, target: Platform, mutants: Sequence[Mutant]) -> None:
        self.op, self.target, self.mutants = op, target, mutants
        self._known: dict[int, tuple[Sample, frozenset[Mutant]]] = {}

    def __call__(self, sample: Sample) -> frozenset[Mutant]:
        if id(sample) not in self._known:
            self._known[id(sample)] = sample, self._by(sample)
        return self._known[id(sample)][1]

    def _by(self, sample: Sample) -> frozenset[Mutant]:
        found: set[Mutant] = set()
        machines: list[Machine] = []

        def prepare(machine: Machine) -> None:
            machines.append(machine)
            watched: dict[int, list[_Pair]] = {}
            for m in self.mutants:
                if m not in found and m.is_in(machine.program) and _registers_alone(m, machine):
                    watched.setdefault(m.place, []).append(_Pair(m, machine.run_by[m.place]))
            for place, pairs in watched.items():
                machine.run_by[place] = _running(machine, place, pairs, found)

        emulate(self.op, sample, self.target, prepare=prepare)
        for machine in machines:
            here = (m for m in self.mutants if m.is_in(machine.program) and machine.executed[m.place])
            found |= {m for m in here if not _registers_alone(m, machine)}
        return frozenset(found)


def _registers_alone(mutant: Mutant, machine: Machine) -> bool:
    """Whether both instructions are such as only write registers (no branch, no wait)."""
    return machine.run_by[mutant.place] is not None and not mutant.before.startswith(_OUTWARD)


class _Pair:
    """A mutant's instruction and what runs it, and what it became."""

    def __init__(self, mutant: Mutant, run: Any) -> None:
        self.mutant, self.run = mutant, run
        self.new = instruction(mutant.after)
        target = target_of(mutant.target)
        self.run_new = _nothing if self.new.name in control.NOTHING else table_of(target)[self.new.name]
        self.issued = control.issued(self.new, target)
        self.written = sorted(writes(instruction(mutant.before), target) | writes(self.new, target))

    def same(self, w: Waves, ins: Instruction) -> bool:
        """Whether both write the same, from the registers as they are, which are kept."""
        kept = _held(w, self.written)
        try:
            if w.pending:
                control.require_settled(w, self.new.registers, self.issued)
            self.run_new(w, self.new)
        except (EmulationError, AttributeError, IndexError):
            _put(w, self.written, kept)
            return False
        new = _held(w, self.written)
        _put(w, self.written, kept)
        self.run(w, ins)
        old = _held(w, self.written)
        _put(w, self.written, kept)
        return all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))


def _running(machine: Machine, place: int, pairs: list[_Pair], found: set[Mutant]) -> Any:
    run = pairs[0].run

    def both(w: Waves, ins: Instruction) -> None:
        for pair in pairs[:]:
            if not pair.same(w, ins):
                found.add(pair.mutant)
                pairs.remove(pair)
        if not pairs:
            machine.run_by[place] = run
        run(w, ins)

    return both


def _held(w: Waves, registers: Sequence[Register]) -> list[Any]:
    return [w.scc.copy() if kind == "scc" else bank(w, kind)[number].copy() for kind, number in registers]


def _put(w: Waves, registers: Sequence[Register], held: Sequence[Any]) -> None:
    for (kind, number), value in zip(registers, held, strict=True):
        if kind == "scc":
            w.scc = value.copy()
        else:
            bank(w, kind)[number] = value
    w._exec = None


def _nothing(w: Waves, ins: Instruction) -> None:
    pass
