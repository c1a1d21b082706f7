"""Scratch memory, where the compiler puts registers that do not fit (LLVM, "User Guide for AMDGPU Backend", sections "Address
Spaces" and "Flat Scratch"; AMD, "RDNA3 Instruction Set Architecture", chapter Flat Memory Instructions).

Every lane has bytes of its own, as many as the kernel says. Nothing defines them at first.
"""

from __future__ import annotations

import numpy as np

from .errors import EmulationError
from .memory import SIZES
from .parse import Instruction
from .state import Waves
from .undefined import require_defined


def _run(w: Waves, ins: Instruction) -> None:
    """Data, an address of vector registers or ``off``, one of a scalar register or ``off``."""
    load, size, on = "_load_" in ins.name, SIZES[ins.name.rpartition("_")[2]], w.exec
    data, address = (ins.operands[0], ins.operands[1]) if load else (ins.operands[1], ins.operands[0])
    at = np.full(on.shape, ins.number("offset"), np.int64)
    for op in (address, ins.operands[2]):
        if op.text != "off":
            at += (w.scalar(op)[:, None] if op.kind == "s" else w.read(op)).astype(np.int64)
    at, held = at[on], w.machine.scratch
    if w.twins:
        require_defined(w, "an address of scratch memory", at, on)
    wrong = (at < 0) | (at + size > 4 * held.shape[3]) | (at % 4 != 0)
    if wrong.any():
        raise EmulationError(f"{size} bytes at {at[wrong][0]:#x} of scratch memory: outside or misaligned")
    wave, lane = np.nonzero(on)
    for i in range(size // 4):
        place = w.group[wave], w.wave[wave], lane, at // 4 + i
        if load:
            full = np.zeros(on.shape, np.uint32)
            full[on] = held[place]
            w.write(data, full, i)
        else:
            held[place] = np.broadcast_to(w.read(data, i), on.shape)[on]


_KINDS = ("dword", "dwordx2", "dwordx3", "dwordx4")
TABLE = {f"scratch_{way}_{kind}": _run for way in ("load", "store") for kind in _KINDS}
