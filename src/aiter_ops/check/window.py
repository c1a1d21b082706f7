"""Straight runs of instructions around a changed one, and which registers are read after them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiter_ops.amdgcn import EmulationError, Program, control, instruction
from aiter_ops.amdgcn.launch import TABLE
from aiter_ops.amdgcn.parse import EXEC, VCC, Instruction
from aiter_ops.amdgcn.state import Waves

from .mutate import Mutant

Register = tuple[str, int]
BEFORE, AFTER = 48, 64
"""Instructions that a window has at most, before the changed one and from it on."""

SCC: Register = ("scc", 0)
_VCC, _EXEC = frozenset({("s", VCC), ("s", VCC + 1)}), frozenset({("s", EXEC), ("s", EXEC + 1)})
_MEMORY = ("buffer_", "global_", "ds_", "s_load", "flat_")
_KEEPS = r"v_fmac|v_dot|_hi|v_swap|v_permlane|v_cvt_pk_(fp8|bf8)|v_cvt_scalef32|v_writelane|v_bitop3_b16|v_mov_b16"
"""What reads the register that it writes, or leaves parts of it."""

_OF_A_DIVISOR = r"v_cvt_f32_u32|s_abs_i32"
"""What is done to a divisor before its reciprocal is estimated."""

_NO_SCC = (
    r"s_(mul|mov|cselect|pack|load|waitcnt|barrier|nop|branch|cbranch|endpgm|setreg|brev|ff1|flbit|sext|sleep|setprio)"
)
"""Scalar instructions that leave SCC alone."""


def _of(operand: Any) -> frozenset[Register]:
    return frozenset((operand.kind, operand.index + i) for i in range(operand.count) if operand.kind in "vsa")


def reads(ins: Instruction) -> frozenset[Register]:
    """Every register that an instruction may read."""
    outward = "_store_" in ins.name or ins.name.startswith(("ds_write", "ds_add", "s_cmp", "s_bitcmp", "s_cbranch"))
    keeps = bool(re.search(_KEEPS, ins.name)) or ins.encoding in ("dpp", "sdwa") or bool(ins.mods.get("op_sel"))
    named = frozenset().union(*(_of(o) for o in ins.operands[0 if outward or keeps else 1 :]))
    if "vcc" in ins.name or re.match(r"v_(cndmask|addc|subb|div_fmas)", ins.name):
        named |= _VCC
    if "exec" in ins.name or not ins.name.startswith("s_"):
        named |= _EXEC
    if re.match(r"s_(cselect|addc|subb|cmov|cbranch_scc)", ins.name):
        named |= {SCC}
    return named


def writes(ins: Instruction) -> frozenset[Register]:
    """Every register that an instruction may write."""
    if "_store_" in ins.name or ins.name.startswith(("ds_write", "ds_add", "s_waitcnt", "s_branch", "s_cbranch")):
        return frozenset()
    count = 2 if re.match(r"v_(mad_[ui]64|add_co|sub_co|subrev_co|addc|subb|div_scale|swap|permlane)", ins.name) else 1
    compares = ins.name.startswith(("s_cmp", "s_bitcmp"))
    named = frozenset() if compares else frozenset().union(*(_of(o) for o in ins.operands[:count]))
    if "saveexec" in ins.name:
        named |= _EXEC
    if ins.name.startswith("s_") and not re.match(_NO_SCC, ins.name):
        named |= {SCC}
    return named


@dataclass(frozen=True, eq=False)
class Window:
    """The instructions from `start` to before `end` of a program, without branches or labels in between."""

    program: Program
    start: int
    end: int

    @staticmethod
    def around(program: Program, place: int, loads: bool = True) -> Window:
        """Of the instruction at `place`; not `loads`: from the last access to memory before it on."""
        marks, code = {*program.labels.values()}, program.code

        def stops(at: int) -> bool:
            return code[at].name in control.CONDITIONS or code[at].name in (
                "s_endpgm",
                "s_barrier",
                "s_setreg_imm32_b32",
            )

        start = place
        while start > max(0, place - BEFORE) and start not in marks and not stops(start - 1):
            if not loads and _loads(code[start - 1]):
                break
            start -= 1
        while code[start].name not in TABLE:
            start += 1
        end = place + 1
        while end < min(len(code), place + AFTER) and end not in marks and not stops(end):
            end += 1
        return Window(program, start, end)

    @property
    def inputs(self) -> tuple[Register, ...]:
        """What is read before it is written."""
        written: set[Register] = set()
        found: set[Register] = {SCC}
        for ins in self.program.code[self.start : self.end]:
            found |= reads(ins) - written
            written |= writes(ins)
        return tuple(sorted(found, key=lambda r: (r != SCC, r)))

    @property
    def divisors(self) -> frozenset[Register]:
        """Inputs of which the compiler's division of integers estimates the reciprocal. A division by zero has no meaning
        (LLVM's language reference, udiv and sdiv), so they are not zero.
        """
        code, found = self.program.code, frozenset[Register]()
        for place in range(self.start, self.end):
            if code[place].name != "v_rcp_iflag_f32":
                continue
            held = _of(code[place].operands[1])
            for ins in reversed(code[self.start : place]):
                if writes(ins) & held:
                    held = _of(ins.operands[1]) if re.match(_OF_A_DIVISOR, ins.name) else frozenset()
            found |= held
        return found & frozenset(self.inputs)

    @property
    def loads(self) -> dict[int, tuple[Register, ...]]:
        """By place: what accesses to memory in it load."""
        code = self.program.code
        found = {p: tuple(sorted(writes(code[p]) - {SCC})) for p in range(self.start, self.end) if _loads(code[p])}
        return {place: registers for place, registers in found.items() if registers}

    def same(self, mutant: Mutant, waves: Waves, load: Callable[[Waves, int], None]) -> bool:
        """Whether, from these registers on, the window with the changed instruction does the same accesses to memory and
        LDS as the old one and leaves the same in all registers that are read later. load: puts into waves what the load at
        a place could bring.
        """
        old, new = waves, waves.part(np.ones(len(waves), np.bool_))
        new.mode = old.mode
        changed, loads = instruction(mutant.after), self.loads
        try:
            with np.errstate(all="ignore"):
                for place in range(self.start, self.end):
                    ins = self.program.code[place]
                    other = changed if place == mutant.place else ins
                    if _loads(ins):
                        if other is not ins or not all(_equal(old, new, register) for register in reads(ins)):
                            return False
                        if place in loads:
                            load(old, place)
                        for register in loads.get(place, ()):
                            _copy(old, new, register)
                    elif ins.name not in (*control.NOTHING, "s_waitcnt"):
                        _run(old, ins)
                        _run(new, other)
        except (EmulationError, AttributeError, IndexError, KeyError):
            return False
        later = live(self.program)[self.end] if self.end < len(self.program.code) else frozenset[Register]()
        return all(_equal(old, new, register) for register in later)


def _loads(ins: Instruction) -> bool:
    return ins.name.startswith(_MEMORY)


def _copy(a: Waves, b: Waves, register: Register) -> None:
    kind, number = register
    {"v": b.v, "a": b.a, "s": b.s}[kind][number] = {"v": a.v, "a": a.a, "s": a.s}[kind][number]


def _run(w: Waves, ins: Instruction) -> None:
    run: Callable[[Waves, Instruction], None] = TABLE[ins.name]
    run(w, ins)


def _equal(a: Waves, b: Waves, register: Register) -> bool:
    kind, number = register
    if kind == "scc":
        return bool((a.scc == b.scc).all())
    return bool(({"v": a.v, "a": a.a, "s": a.s}[kind][number] == {"v": b.v, "a": b.a, "s": b.s}[kind][number]).all())


_LIVE: dict[int, tuple[Program, list[frozenset[Register]]]] = {}


def live(program: Program) -> list[frozenset[Register]]:
    """By instruction: the registers that may be read from there on before they are written. Vector registers are not taken
    for written where a program turns lanes off.
    """
    if id(program) in _LIVE:
        return _LIVE[id(program)][1]
    code = program.code
    used, written = [reads(i) for i in code], [writes(i) for i in code]
    masked = any(w & _EXEC for w in written)
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
