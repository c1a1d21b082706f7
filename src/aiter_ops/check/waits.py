"""Whether a program waits enough on every path through it, whatever its branches decide."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aiter_ops.amdgcn import EmulationError, Program, control

from .registers import is_barrier, target_of

MOST_STATES = 400_000


def waits_enough(program: Program) -> bool:
    """Whether no path names a register that an outstanding load will write, or comes to a barrier with accesses to LDS
    outstanding. False also where that was not found out: of loads to LDS, and of very many paths.
    """
    code = program.code
    if any("_load_lds_" in i.name or "lds" in i.mods for i in code):
        return False
    target = target_of(program.target)
    issued = [control.issued(i, target) for i in code]
    seen: set[tuple[int, Any]] = set()
    todo: list[tuple[int, Any]] = [(program.after_preload, ())]
    w: Any = SimpleNamespace(pending=(), machine=SimpleNamespace(target=target))
    while todo:
        state = todo.pop()
        while state not in seen:
            seen.add(state)
            if len(seen) > MOST_STATES:
                return False
            place, w.pending = state
            ins = code[place]
            if ins.name == "s_endpgm":
                break
            try:
                if is_barrier(ins):
                    control.require_written(w)
                elif (wait := control.WAITS.get(ins.name)) is not None:
                    if ins.name != "s_sendmsg":
                        wait(w, ins)
                elif ins.name not in control.CONDITIONS:
                    control.require_settled(w, ins.registers, issued[place])
                    if (entry := issued[place]) is not None:
                        control.note(w, entry)
            except EmulationError:
                return False
            following = place + 1
            if ins.name in control.CONDITIONS:
                target = program.labels[ins.operands[0].text]
                if ins.name == "s_branch":
                    following = target
                else:
                    todo.append((target, w.pending))
            state = following, w.pending
    return True
