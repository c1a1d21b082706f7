"""Vector integer arithmetic whose carry, borrow or overflow goes to a mask of lanes (AMD, "CDNA3" and "RDNA3 Instruction Set
Architecture", sections VOP2 and VOP3B).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import Unsupported
from .lanes import dpp
from .parse import Instruction
from .state import Waves
from .vector import source


def _wide(x: Any) -> Any:
    return x.astype(np.uint64)


def _low(x: Any) -> Any:
    return (x & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _carry(w: Waves, ins: Instruction) -> None:
    """dst, carry out, two sources and, for the forms with one, carry in."""
    if ins.encoding == "sdwa":
        raise Unsupported(f"{ins.name} with SDWA")
    moved = None
    if ins.encoding == "dpp":
        moved, where = dpp(w, ins, w.read(ins.operands[2]))
        if (where != w.exec).any():
            raise Unsupported(f"{ins.name} with lanes that DPP leaves out")
    a, b = _wide(source(w, ins, 2, "u32", moved)), _wide(source(w, ins, 3, "u32"))
    carry = _wide(w.lanes(ins.operands[4])) if len(ins.operands) > 4 else np.uint64(0)
    if "rev" in ins.name:
        a, b = b, a
    if "add" in ins.name:
        total = a + b + carry
        out = total > np.uint64(0xFFFFFFFF)
    else:
        total, out = a - b - carry, b + carry > a
    w.write(ins.operands[0], _low(total))
    w.set_lanes(ins.operands[1], out)


def _mad64(w: Waves, ins: Instruction) -> None:
    """a · b + c in 64 bits; the mask gets bit 64 of the sum (the carry, or the sign of the signed sum)."""
    kind = "u32" if ins.name == "v_mad_u64_u32" else "i32"
    wide: Any = np.uint64 if kind == "u32" else np.int64
    product = (source(w, ins, 2, kind).astype(wide) * source(w, ins, 3, kind).astype(wide)).view(np.uint64)
    added = w.read64(ins.operands[4])
    total = product + added
    w.write64(ins.operands[0], total)
    if kind == "u32":
        w.set_lanes(ins.operands[1], total < product)
        return
    negative, one, other = (x.view(np.int64) < 0 for x in (total, product, added))
    overflowed = (one == other) & (negative != one)
    w.set_lanes(ins.operands[1], negative ^ overflowed)


TABLE: dict[str, Callable[[Waves, Instruction], None]] = {
    **dict.fromkeys([f"v_{o}_co_u32" for o in ("add", "sub", "subrev", "addc", "subb", "subbrev")], _carry),
    "v_mad_u64_u32": _mad64,
    "v_mad_i64_i32": _mad64,
}
