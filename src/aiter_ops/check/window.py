"""Straight runs of instructions around a changed one, and which registers are read after them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aiter_ops.amdgcn import EmulationError, Program, control
from aiter_ops.amdgcn.parse import EXEC, Instruction
from aiter_ops.amdgcn.state import Waves
from aiter_ops.amdgcn.targets import Target

from .registers import SCC, Register, bank, is_barrier, of_operand, reads, table_of, target_of, writes

BEFORE, AFTER = 48, 64
"""Instructions that a window has at most, before the changed one and from it on."""

_EXEC: Register = ("s", EXEC)
_MEMORY = ("buffer_", "global_", "scratch_", "ds_", "s_load", "flat_")
_MOVES = ("ds_bpermute", "ds_permute", "ds_swizzle")
_NOTHING_HERE = (*control.NOTHING, *control.WAITS)

_OF_A_DIVISOR = r"[sv]_cvt_f32_u32|s_abs_i32"
"""What is done to a divisor before its reciprocal is estimated."""


@dataclass(frozen=True, eq=False)
class Window:
    """The instructions from `start` to before `end` of a program, without branches or labels in between. other: what stands
    at `place` instead.
    """

    program: Program
    start: int
    end: int
    place: int
    other: Instruction

    @staticmethod
    def around(program: Program, place: int, other: Instruction, loads: bool = True) -> Window:
        """Of the instruction at `place`; not `loads`: from the last access to memory before it on."""
        marks, code = {*program.labels.values()}, program.code

        def stops(at: int) -> bool:
            name = code[at].name
            return name in control.CONDITIONS or is_barrier(code[at]) or name in ("s_endpgm", "s_setreg_imm32_b32")

        start = place
        while start > max(0, place - BEFORE) and start not in marks and not stops(start - 1):
            if not loads and _loads(code[start - 1]):
                break
            start -= 1
        known = table_of(target_of(program.target))
        while code[start].name not in known:
            start += 1
        end = place + 1
        while end < min(len(code), place + AFTER) and end not in marks and not stops(end):
            end += 1
        return Window(program, start, end, place, other)

    @functools.cached_property
    def inputs(self) -> tuple[Register, ...]:
        """What is read before it is written."""
        written: set[Register] = set()
        found: set[Register] = {SCC}
        target = target_of(self.program.target)
        for place in range(self.start, self.end):
            ins = self.program.code[place]
            found |= reads(ins, target) - written
            if place == self.place:
                found |= reads(self.other, target) - written
            written |= writes(ins, target)
        return tuple(sorted(found, key=lambda r: (r != SCC, r)))

    @property
    def divisors(self) -> frozenset[Register]:
        """Inputs of which the compiler's division of integers estimates the reciprocal. A division by zero has no meaning
        (LLVM's language reference, udiv and sdiv), so they are not zero.
        """
        code, found, target = self.program.code, frozenset[Register](), target_of(self.program.target)
        for place in range(self.start, self.end):
            if code[place].name != "v_rcp_iflag_f32":
                continue
            held = of_operand(code[place].operands[1])
            for ins in reversed(code[self.start : place]):
                if writes(ins, target) & held:
                    held = of_operand(ins.operands[1]) if re.match(_OF_A_DIVISOR, ins.name) else frozenset()
            found |= held
        return found & frozenset(self.inputs)

    @functools.cached_property
    def loads(self) -> dict[int, tuple[Register, ...]]:
        """By place: what accesses to memory in it load."""
        code, target = self.program.code, target_of(self.program.target)
        places = (p for p in range(self.start, self.end) if _loads(code[p]))
        found = {p: tuple(sorted(writes(code[p], target) - {SCC})) for p in places}
        return {place: registers for place, registers in found.items() if registers}

    def same(self, waves: Waves, load: Callable[[Waves, int], None]) -> bool:
        """Whether, from these registers on, the window with the changed instruction does the same accesses to memory and
        LDS as the old one and leaves the same in all registers that are read later. Stores of a wave are the same where the
        same goes to the same places, from whichever lanes. load: puts into waves what the load at a place could bring.
        """
        old, new = waves, waves.part(np.ones(len(waves), np.bool_))
        new.mode = old.mode
        target = target_of(self.program.target)
        loads, table = self.loads, table_of(target)
        try:
            with np.errstate(all="ignore"):
                for place in range(self.start, self.end):
                    ins = self.program.code[place]
                    other = self.other if place == self.place else ins
                    if _loads(ins):
                        if other is not ins or not _same_access(old, new, ins, target):
                            return False
                        if place in loads:
                            load(old, place)
                        for register in loads.get(place, ()):
                            _copy(old, new, register)
                    elif ins.name not in _NOTHING_HERE:
                        table[ins.name](old, ins)
                        table[other.name](new, other)
        except (EmulationError, AttributeError, IndexError, KeyError):
            return False
        later = live(self.program)[self.end] if self.end < len(self.program.code) else frozenset[Register]()
        return all(_equal(old, new, register) for register in later)


def _loads(ins: Instruction) -> bool:
    """Whether it accesses memory or LDS; moves between lanes, though named like accesses to LDS, do not."""
    return ins.name.startswith(_MEMORY) and not ins.name.startswith(_MOVES)


def _same_access(a: Waves, b: Waves, ins: Instruction, target: Target) -> bool:
    """Whether an access to memory or LDS does the same from either registers."""
    read = reads(ins, target)
    if all(_equal(a, b, register) for register in read):
        return True
    if "_store_" not in ins.name and not ins.name.startswith("ds_write"):
        return False
    if not all(_equal(a, b, r) for r in read if r[0] == "s" and r[1] not in (EXEC, EXEC + 1)):
        return False
    held = sorted(r for r in read if r[0] in "va")
    both = (np.stack([bank(w, kind)[number] for kind, number in held], axis=-1) for w in (a, b))
    return all(
        np.array_equal(np.unique(x[on], axis=0), np.unique(y[also], axis=0))
        for x, y, on, also in zip(*both, a.exec, b.exec, strict=True)
    )


def _copy(a: Waves, b: Waves, register: Register) -> None:
    kind, number = register
    bank(b, kind)[number] = bank(a, kind)[number]


def _equal(a: Waves, b: Waves, register: Register) -> bool:
    kind, number = register
    if kind == "scc":
        return bool((a.scc == b.scc).all())
    return bool((bank(a, kind)[number] == bank(b, kind)[number]).all())


_LIVE: dict[int, tuple[Program, list[frozenset[Register]]]] = {}


def live(program: Program) -> list[frozenset[Register]]:
    """By instruction: the registers that may be read from there on before they are written. Vector registers are not taken
    for written where a program turns lanes off.
    """
    if id(program) in _LIVE:
        return _LIVE[id(program)][1]
    code, target = program.code, target_of(program.target)
    used, written = [reads(i, target) for i in code], [writes(i, target) for i in code]
    masked = any(_EXEC in w for w in written)
    kills = [frozenset(r for r in w if r[0] in ("s", "scc") or not masked) for w in written]
    following: list[list[int]] = []
    for place, ins in enumerate(code):
        after = [] if ins.name in ("s_endpgm", "s_branch") else [place + 1]
        if ins.name in control.CONDITIONS:
            after.append(program.labels[ins.operands[0].text])
        following.append([a for a in after if a < len(code)])
    found: list[frozenset[Register]] = [frozenset()] * len(code)
    again = True
    while again:
        again = False
        for place in range(len(code) - 1, -1, -1):
            after = frozenset().union(*(found[a] for a in following[place]))
            now = used[place] | (after - kills[place])
            if now != found[place]:
                found[place], again = now, True
    _LIVE[id(program)] = program, found
    return found
