"""v_bitop3: any function of three bits (AMD, "CDNA4 Instruction Set Architecture", section VOP3A)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import Unsupported
from .parse import Instruction
from .state import Waves
from .vector import source


def bit_function(table: int, sources: list[Any]) -> Any:
    """table: bit 4a + 2b + c is the result where the three sources have bits a, b, c (for fewer sources fewer bits).

    f(a, rest) = f(0, rest) ^ (a & (f(0, rest) ^ f(1, rest))), and the tables of those are halves of this one. None: all 0.
    """
    if table == 0:
        return None
    if not sources:
        return np.uint32(0xFFFFFFFF)
    first, *rest = sources
    width = 1 << len(rest)
    zero, one = table & ((1 << width) - 1), table >> width
    base, change = bit_function(zero, rest), bit_function(zero ^ one, rest)
    if change is None:
        return base
    changed = first if isinstance(change, np.uint32) else first & change
    return changed if base is None else base ^ changed


def _bitop3(w: Waves, ins: Instruction) -> None:
    if ins.encoding in ("dpp", "sdwa") or "bitop3" not in ins.mods:
        raise Unsupported(f"{ins.name} with {ins.encoding or 'no bitop3'}")
    half = ins.name == "v_bitop3_b16"
    values = [source(w, ins, i, "u16" if half else "u32").astype(np.uint32) for i in (1, 2, 3)]
    made = bit_function(ins.number("bitop3"), values)
    bits = np.zeros((1, 1), np.uint32) if made is None else np.asarray(made)
    if half:
        if ins.bits("op_sel", (0, 0, 0, 0))[3]:
            raise Unsupported(f"the high half of the result of {ins.name}")
        # what the upper half holds afterwards is not documented
        bits = (bits & np.uint32(0xFFFF)) | (w.machine.unknown(w) & np.uint32(0xFFFF0000))
    w.write(ins.operands[0], bits)


def _prng(w: Waves, ins: Instruction) -> None:
    """One step of a shift register with feedback."""
    x = w.read(ins.operands[1])
    w.write(ins.operands[0], (x << np.uint32(1)) ^ np.where(x >> np.uint32(31) != 0, np.uint32(197), np.uint32(0)))


TABLE = {"v_bitop3_b32": _bitop3, "v_bitop3_b16": _bitop3, "v_prng_b32": _prng}
