"""Branches, waits and what is outstanding (AMD, "CDNA3 Instruction Set Architecture", section SOPP; LLVM, "User Guide
for AMDGPU Backend", section "Memory Model gfx942").

A register that an outstanding load will write may not be named before a sufficient s_waitcnt. Loads return in order
within vmcnt, and LDS operations within lgkmcnt; scalar loads do not, so with one outstanding only lgkmcnt(0) counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .errors import EmulationError, Unsupported
from .parse import EXEC, VCC, Instruction
from .state import Waves


class Outstanding(NamedTuple):
    """counter: ``vm`` or ``lgkm``; kind: ``load``, ``store``, ``scalar``, ``lds``, ``lds write``; ``lds load``: from memory
    to LDS, whose register is ``lds`` with the number of the load.
    """

    counter: str
    kind: str
    registers: frozenset[tuple[str, int]]


_MOST = {"vm": 63, "lgkm": 15}


def issued(ins: Instruction) -> Outstanding | None:
    """What an instruction leaves outstanding; loads to LDS say it when they run."""
    name = ins.name
    if "_load_lds_" in name or "lds" in ins.mods:
        return None
    if name.startswith("s_load"):
        return Outstanding("lgkm", "scalar", _registers(ins))
    if name.startswith(("global_", "buffer_", "flat_")):
        load = "_load_" in name
        return Outstanding("vm", "load" if load else "store", _registers(ins) if load else frozenset())
    if name.startswith("ds_"):
        write = name.startswith(("ds_write", "ds_add"))
        kind = "lds write" if write else "lds" if name.startswith("ds_read") else "lanes"
        return Outstanding("lgkm", kind, frozenset() if write else _registers(ins))
    return None


def _registers(ins: Instruction) -> frozenset[tuple[str, int]]:
    dst = ins.operands[0]
    return frozenset((dst.kind, i) for i in range(dst.index, dst.index + dst.count))


def note(w: Waves, entry: Outstanding) -> None:
    """An access was issued; beyond a counter's range the hardware waits for the oldest."""
    mine = [e for e in w.pending if e.counter == entry.counter]
    if len(mine) >= _MOST[entry.counter]:
        _retire(w, entry.counter, _MOST[entry.counter] - 1)
    w.pending = (*w.pending, entry)


def _retire(w: Waves, counter: str, left: int) -> None:
    mine = [e for e in w.pending if e.counter == counter]
    if left and any(e.kind == "scalar" for e in mine):
        return
    gone = len(mine) - left
    kept = []
    for e in w.pending:
        if e.counter == counter and gone > 0:
            gone -= 1
            if e.kind == "lds load":
                w.machine.lds.land(min(e.registers)[1], w.group, w.wave)
            continue
        kept.append(e)
    w.pending = tuple(kept)


def waitcnt(w: Waves, ins: Instruction) -> None:
    for op in ins.operands:
        found = re.fullmatch(r"(vm|lgkm|exp)cnt\((\d+)\)", op.text)
        if found is None:
            raise Unsupported(f"counter {op.text}")
        if found[1] != "exp":
            _retire(w, found[1], int(found[2]))


def require_settled(w: Waves, named: frozenset[tuple[str, int]], entry: Outstanding | None) -> None:
    """named: the registers of an instruction, which leaves `entry` outstanding. A load may overtake none of its own
    kind, so it may write to a register that an earlier one will write.
    """
    for e in w.pending:
        in_order = entry is not None and entry.counter == e.counter and "scalar" not in (entry.kind, e.kind)
        again = entry.registers if entry and in_order else frozenset()
        if common := e.registers & (named - again):
            kind, number = min(common)
            raise EmulationError(f"{kind}{number} is used while a load to it is outstanding")


def require_written(w: Waves) -> None:
    """Before a barrier: LDS writes must have been waited for, and reads, which what follows it may overtake."""
    for e in w.pending:
        if e.kind in ("lds write", "lds"):
            kind = "write" if e.kind == "lds write" else "read"
            raise EmulationError(f"a barrier while an LDS {kind} is outstanding")


CONDITIONS: dict[str, Callable[[Waves], np.ndarray]] = {
    "s_branch": lambda w: np.ones(len(w), np.bool_),
    "s_cbranch_scc0": lambda w: ~w.scc,
    "s_cbranch_scc1": lambda w: w.scc,
    "s_cbranch_vccz": lambda w: w.s64(VCC) == 0,
    "s_cbranch_vccnz": lambda w: w.s64(VCC) != 0,
    "s_cbranch_execz": lambda w: w.s64(EXEC) == 0,
    "s_cbranch_execnz": lambda w: w.s64(EXEC) != 0,
}
"""By branch: [n] whether each wave takes it."""

NOTHING = ("s_nop", "s_setprio", "s_sleep", "s_clause", "buffer_wbl2", "buffer_inv", "s_icache_inv", "s_dcache_inv")
"""Timing and caches, which the emulator does not have."""
