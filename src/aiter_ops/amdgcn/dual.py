"""Two vector instructions in one, v_dual_… :: v_dual_… (AMD, "RDNA3 Instruction Set Architecture", section VOPD)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .control import Run
from .errors import Unsupported
from .parse import Instruction
from .state import Waves


def both_of(table: Mapping[str, Run]) -> Run:
    """What runs a pair of instructions of `table`: both read their sources before either writes its result."""

    def run(w: Waves, ins: Instruction) -> None:
        first, second = ins.pair
        dst, other = first.operands[0], second.operands[0]
        if dst.kind != "v" or other.kind != "v" or dst.index % 2 == other.index % 2:
            raise Unsupported(f"results of {ins.text}")
        if ("v", dst.index) not in {(op.kind, op.index) for op in second.operands[1:]}:
            table[first.name](w, first)
            table[second.name](w, second)
            return
        before = w.v[dst.index].copy()
        table[first.name](w, first)
        after = w.v[dst.index].copy()
        np.copyto(w.v[dst.index], before)
        table[second.name](w, second)
        np.copyto(w.v[dst.index], after)

    return run
