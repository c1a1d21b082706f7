"""Changed instructions, run beside the old ones on copies of the registers, without touching what the program does."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from aiter_ops.amdgcn import EmulationError, Machine, instruction
from aiter_ops.amdgcn.parse import EXEC, NULL, Instruction
from aiter_ops.amdgcn.state import SGPRS, Waves
from aiter_ops.amdgcn.targets import CDNA, Target
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform
from aiter_ops.core.samples import Sample

from .emulate import emulate
from .mutate import Mutant
from .registers import SCC, Register, bank, parts, reads, table_of, target_of

MOST_ROWS = 512
"""Waves of which what they read is kept, of an input."""

Rows = set[tuple[int, bytes]]
"""The number of a wave in its workgroup, and what its lanes read."""


@dataclass
class Seen:
    """What both instructions of a mutant read and wrote over some inputs. runs: executions; differs: whether they ever wrote
    different things; full: whether all lanes were always on. read: by input and by source, what waves read of it; of at most
    MOST_ROWS waves.
    """

    mutant: Mutant
    old: Instruction
    new: Instruction
    runs: int = 0
    differs: bool = False
    full: bool = True
    read: list[list[Rows]] = field(default_factory=list)

    @property
    def sources(self) -> tuple[Register, ...]:
        """What either reads, SCC first; EXEC where it is an operand."""
        implied = {("s", EXEC), ("s", EXEC + 1)} - (self.old.registers | self.new.registers)
        both = reads(self.old, self.target) | reads(self.new, self.target)
        return (SCC, *sorted(both - implied - {SCC}))

    @property
    def target(self) -> Target:
        return target_of(self.mutant.target)

    def note(self, w: Waves) -> None:
        """What the waves are about to read."""
        note(w, self.sources, self.read[-1], _crosses(self.old))

    def run(self, w: Waves, ins: Instruction, apply: bool = True) -> tuple[Any, ...] | None:
        """Run both on equal registers, the old one on those of `w` (apply: False: on a copy); where they differ, or None."""
        beside = w.part(np.ones(len(w), np.bool_))
        self.note(w)
        self.full = self.full and w.full
        self.runs += 1
        one = w if apply else w.part(np.ones(len(w), np.bool_))
        table = table_of(self.target)
        table[ins.name](one, ins)
        try:
            table[self.new.name](beside, self.new)
        except EmulationError:
            self.differs = True
            raise
        found = differences(one, beside)
        if not any(x.any() for x in found):
            return None
        self.differs = True
        return found


def note(w: Waves, sources: Sequence[Register], into: list[Rows], off: bool) -> None:
    """Add what the first of twins hold in `sources`. off: also lanes that are off."""
    for (kind, number), found in zip(sources, into, strict=True):
        if len(found) >= MOST_ROWS:
            continue
        held = w.scc[::2, None] if kind == "scc" else bank(w, kind)[number][::2]
        rows: Any = np.ascontiguousarray(held.reshape(len(w) // 2, -1).astype(np.uint32))
        if kind in "va" and not off and not w.full:
            rows = np.where(w.exec[::2], rows, 0)
        for wave, row in zip(w.wave[::2].tolist(), rows, strict=True):
            if len(found) < MOST_ROWS:
                found.add((wave, row.tobytes()))


def _crosses(ins: Instruction) -> bool:
    """Whether a lane reads registers of others."""
    return ins.encoding == "dpp" or ins.name.startswith(("ds_", "v_mfma", "v_wmma", "v_read", "v_permlane", "v_swap"))


def differences(a: Waves, b: Waves) -> tuple[Any, ...]:
    """Where v, a, s and scc differ."""
    return a.v != b.v, a.a != b.a, a.s != b.s, a.scc != b.scc


def apart(mutant: Mutant) -> bool:
    """Whether a mutant can be watched while others are: it touches neither memory nor LDS."""
    return not instruction(mutant.before).name.startswith(("ds_read", "buffer_", "global_", "scratch_", "s_load"))


def watch(op: Op, inputs: Iterable[Sample], target: Platform, mutants: Sequence[Mutant]) -> dict[Mutant, Seen]:
    """Run the inputs once, the instructions of the mutants beside the old ones; all of them `apart`."""
    seen = {m: Seen(m, instruction(m.before), instruction(m.after)) for m in mutants}
    table = table_of(target_of(target.arch))
    for sample in inputs:
        for s in seen.values():
            s.read.append([set() for _ in s.sources])

        def prepare(machine: Machine) -> None:
            by_place: dict[int, list[Seen]] = {}
            for s in seen.values():
                if s.mutant.is_in(machine.program):
                    by_place.setdefault(s.mutant.place, []).append(s)
            for place, some in by_place.items():

                def run(w: Waves, ins: Instruction, some: list[Seen] = some) -> None:
                    for s in some:
                        try:
                            s.run(w, ins, apply=False)
                        except EmulationError:
                            continue
                    table[ins.name](w, ins)

                machine.run_by[place] = run

        emulate(op, sample, target, prepare=prepare)
    return seen


def may_differ(
    old: Instruction, new: Instruction, full: bool, first: Waves | None = None, target: Target = CDNA
) -> Any:
    """[lanes of a wave]: the lanes in which the two write something else on random registers (or on those of `first`); all, where scalars
    differ, but for the sign of a zero and the payload of a NaN. full: every lane is on. Accesses to memory may differ
    everywhere.
    """
    first, table = first or random_waves(old, new, target=target), table_of(target)
    if full:
        first.set_mask(EXEC, np.full(len(first), (1 << target.lanes) - 1, np.uint64))
    second = first.part(np.ones(len(first), np.bool_))
    second.mode = first.mode
    try:
        with np.errstate(all="ignore"):
            table[old.name](first, old)
            table[new.name](second, new)
    except (EmulationError, AttributeError, IndexError):
        return np.ones(target.lanes, np.bool_)
    v, a, s, scc = differences(first, second)
    if all("_f32" in a.name for a, b in zip(parts(old), parts(new), strict=True) if a.text != b.text):
        x, y = first.v.view(np.float32), second.v.view(np.float32)
        v &= ~((x == y) | (np.isnan(x) & np.isnan(y)))
    if s.any() or scc.any():
        return np.ones(target.lanes, np.bool_)
    return v.any(axis=(0, 1)) | a.any(axis=(0, 1))


def random_waves(*instructions: Instruction, target: Target = CDNA) -> Waves:
    """Waves whose registers hold random bits, small numbers, ordinary floats, numbers equal in all sources, and the constants
    of the instructions and their neighbours.
    """
    random, lanes = np.random.default_rng(1), target.lanes
    base = _random_bits(lanes)
    machine: Any = SimpleNamespace(fnuz=target.fnuz)  # all that instructions on registers alone ask of one
    w = Waves(machine, base.v.copy(), base.a.copy(), base.s.copy(), base.group, base.wave)
    w.scc, w.mode, w.keeps_halves = base.scc.copy(), target.mode[1], target.keeps_halves
    constants = {
        o.constant(32)
        for ins in instructions
        for part in parts(ins)
        for o in part.operands
        if o.kind in ("int", "float")
    }
    near = [c + d for c in sorted(constants) for d in (-1, 0, 1)]
    values = np.array([*(x & 0xFFFFFFFF for x in near), 0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)
    w.v[:, 128:192] = values[random.integers(0, len(values), (256, 64, lanes), np.uint8)]
    w.s[:106, 128:192] = values[random.integers(0, len(values), (106, 64))]
    return w


@functools.cache
def _random_bits(lanes: int) -> Waves:
    """What of it no instruction changes. Not to be written to."""
    random, n = np.random.default_rng(0), 384

    def bits(*shape: int) -> Any:
        return random.integers(0, 1 << 32, shape, dtype=np.uint32)

    groups = np.zeros(n, np.int64)
    w = Waves(None, bits(256, n, lanes), bits(256, n, lanes), bits(SGPRS, n), groups, groups)
    w.s[NULL:], w.scc = 0, bits(n) % 2 == 1
    w.v[:, :64] &= 0xFF
    # below 2 as fp32, and each half as fp16 and bf16: a sum over lanes with one NaN would hide all others
    w.v[:, 64:128] = w.v[:, 64:128] & 0x81FFBFFF | 0x3E000000
    w.s[:106, :64] &= 0xFF
    # comparisons hold for equal numbers, and for such as differ by one
    w.v[:, 192:256] = w.v[0, 192:256] + random.integers(0, 2, (256, 64, lanes), dtype=np.uint32)
    w.s[:106, 192:256] = w.s[0, 192:256] + random.integers(0, 2, (106, 64), dtype=np.uint32)
    return w


def fill(waves: Waves, sources: Sequence[Register], read: Sequence[Sequence[Rows]], alike: int, seed: int = 1) -> bool:
    """Put into random waves what could stand in `sources`, by what was read there with `alike` inputs of one size and with
    others: where it was the same with all of them what was read, of one wave together; where it was the same with the alike
    ones a size or index, any that is not negative and up to eight times as large; else, and where waves read more than was
    kept, any bits. False: too few inputs ran.
    """
    random, n = np.random.default_rng(seed), len(waves)
    ran = [one for one in read if one and one[0]]
    same_size = [one for one in read[:alike] if one and one[0]]
    if len(ran) < 2:
        return False
    chosen = random.choice(sorted({wave for wave, _ in ran[0][0]}), n).tolist()
    for at, (kind, number) in enumerate(sources):
        if any(len(one[at]) >= MOST_ROWS for one in ran):
            continue
        rows = [(wave, np.frombuffer(row, np.uint32)) for one in ran for wave, row in one[at]]
        most = max(int(row.max()) for _, row in rows)
        if all(one[at] == ran[0][at] for one in ran):
            of_wave: dict[int, list[Any]] = {}
            for wave, row in rows:
                of_wave.setdefault(wave, []).append(row)
            drawn = np.stack([of_wave[w][random.integers(len(of_wave[w]))] for w in chosen])
        elif len(ran) > len(same_size) > 0 and most < 0x80000000 and all(o[at] == same_size[0][at] for o in same_size):
            bits = np.minimum(random.integers(0, most.bit_length() + 4, (n, 1)), 31)
            drawn = random.integers(0, 2**bits, (n, waves.size if kind in "va" else 1))
        else:
            continue
        if kind == "scc":
            waves.scc = drawn[:, 0].astype(np.bool_)
        elif kind == "s":
            waves.s[number] = drawn[:, 0]
            waves._exec = None
        else:
            (waves.v if kind == "v" else waves.a)[number] = drawn
    return True
