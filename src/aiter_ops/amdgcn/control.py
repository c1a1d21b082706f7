"""Branches, waits and what is outstanding (AMD, "CDNA3", "RDNA3" and "RDNA4 Instruction Set Architecture", sections SOPP and,
for the counters, "Data Dependency Resolution"; LLVM, "User Guide for AMDGPU Backend", sections "Memory Model").

A register that an outstanding load will write may not be named before a sufficient wait. Loads from memory return in order
among themselves, and so do LDS operations; scalar loads do not, so with one outstanding only a wait for zero of its counter
counts. What counts which accesses differs between the targets (targets.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .errors import EmulationError, Unsupported
from .parse import EXEC, NULL, VCC, Instruction
from .state import Waves
from .targets import CDNA, Target

Run = Callable[[Waves, Instruction], None]


class Outstanding(NamedTuple):
    """counter: as in targets.py; kind: ``load``, ``store``, ``scalar``, ``lds``, ``lds write``; ``lds load``: from memory
    to LDS, whose register is ``lds`` with the number of the load. most: how far the counter counts.
    """

    counter: str
    kind: str
    registers: frozenset[tuple[str, int]]
    most: int = 63


def issued(ins: Instruction, target: Target = CDNA) -> Outstanding | None:
    """What an instruction leaves outstanding; loads to LDS say it when they run."""
    name = ins.name

    def entry(counted: str, kind: str, loads: bool) -> Outstanding:
        counter, most = target.counters[counted]
        return Outstanding(counter, kind, _registers(ins) if loads else frozenset(), most)

    if "_load_lds_" in name or "lds" in ins.mods:
        return None
    if name.startswith("s_load"):
        return entry("scalar", "scalar", True)
    if name.startswith(("global_", "buffer_", "flat_", "scratch_")):
        kind = "load" if "_load_" in name else "store"
        return entry(kind, kind, kind == "load")
    if name.startswith("ds_"):
        write = name.startswith(("ds_write", "ds_add"))
        kind = "lds write" if write else "lds" if name.startswith("ds_read") else "lanes"
        return entry("lds", kind, not write)
    return None


def _registers(ins: Instruction) -> frozenset[tuple[str, int]]:
    dst = ins.operands[0]
    return frozenset((dst.kind, i) for i in range(dst.index, dst.index + dst.count))


def note(w: Waves, entry: Outstanding) -> None:
    """An access was issued; beyond a counter's range the hardware waits for the oldest."""
    mine = [e for e in w.pending if e.counter == entry.counter]
    if len(mine) >= entry.most:
        _retire(w, entry.counter, entry.most - 1)
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


def _wait_for(counter: str) -> Run:
    def run(w: Waves, ins: Instruction) -> None:
        *register, least = ins.operands
        known = {c for c, _ in w.machine.target.counters.values()}
        if counter not in known or any(op.index != NULL for op in register):
            raise Unsupported(f"counter of {ins.text}")
        _retire(w, counter, int(least.value))

    return run


def _wait_for_both(w: Waves, ins: Instruction) -> None:
    """LDS in bits 0 to 5, memory in bits 8 to 13."""
    bits = int(ins.operands[0].value)
    _retire(w, "load" if "load" in ins.name else "store", bits >> 8 & 63)
    _retire(w, "ds", bits & 63)


def _sendmsg(w: Waves, ins: Instruction) -> None:
    """The vector registers are given back, so nothing may follow but the end."""
    if "MSG_DEALLOC_VGPRS" not in ins.text:
        raise Unsupported("a message")
    if w.machine.program.code[w.pc + 1].name != "s_endpgm":
        raise EmulationError("something follows after the vector registers were given back")


def _signal(w: Waves, ins: Instruction) -> None:
    """To the barrier of the workgroup; the waves go on, but here neither with LDS nor to another signal before they wait."""
    if int(ins.operands[0].value) != -1 or w.signalled:
        raise Unsupported(f"barrier {ins.operands[0].text}, or a second signal")
    require_written(w)
    w.signalled = True


WAITS: dict[str, Run] = {
    "s_waitcnt": waitcnt,
    "s_waitcnt_vscnt": _wait_for("vs"),
    **{f"s_wait_{c}cnt": _wait_for(c) for c in ("load", "store", "ds", "km")},
    **dict.fromkeys(("s_wait_loadcnt_dscnt", "s_wait_storecnt_dscnt"), _wait_for_both),
    "s_sendmsg": _sendmsg,
    "s_barrier_signal": _signal,
}
"""What changes nothing but what is outstanding, or known of others."""


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
    "s_cbranch_vccz": lambda w: w.mask(VCC) == 0,
    "s_cbranch_vccnz": lambda w: w.mask(VCC) != 0,
    "s_cbranch_execz": lambda w: w.mask(EXEC) == 0,
    "s_cbranch_execnz": lambda w: w.mask(EXEC) != 0,
}
"""By branch: [n] whether each wave takes it."""

NOTHING = (
    *("s_nop", "s_setprio", "s_sleep", "s_clause", "v_nop", "s_delay_alu", "s_waitcnt_depctr", "s_wait_alu"),
    *("buffer_wbl2", "buffer_inv", "s_icache_inv", "s_dcache_inv", "s_set_inst_prefetch_distance"),
    *("buffer_gl0_inv", "buffer_gl1_inv", "global_inv", "global_wb"),
)
"""Timing and caches, which the emulator does not have."""
