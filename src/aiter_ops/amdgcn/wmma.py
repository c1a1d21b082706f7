"""Matrix instructions of waves of 32 lanes (AMD, "RDNA3" and "RDNA4 Instruction Set Architecture", section WMMA; layouts as
AMD's matrix instruction calculator gives them, and as Triton's AMD back end relies on them).

Products are exact; they are added to the accumulator one after another in the order of k, each sum rounded to fp32 (to
nearest even), as in matrix.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import numbers as num
from .control import Run
from .matrix import Result, elements, factor, require_all_lanes
from .parse import Instruction, Operand
from .state import Waves

ROWS = 16
_LANE, _REGISTER = np.arange(32)[:, None], np.arange(8)
_INTERLEAVED = Result(2 * _REGISTER + _LANE // ROWS, _LANE % ROWS)
"""RDNA3: register r of lane l is row 2 · r + l div 16."""
_BLOCKS = Result(_REGISTER + 8 * (_LANE // ROWS), _LANE % ROWS)
"""RDNA4: register r of lane l is row r + 8 · (l div 16)."""


def _repeated(w: Waves, op: Operand, kind: str) -> Any:
    """[n, 16, k]: RDNA3 has the row (column) l mod 16 in lane l, all k of it, so both halves of the wave must hold the same.
    Which half the hardware reads for what is not said: of twins one takes the first and one the second, so that where they
    differ the result is undefined.
    """
    held = elements(w, op, kind, 16).reshape(len(w), 2, ROWS, 16)
    return np.where((np.arange(len(w)) % 2 == 1)[:, None, None], held[:, 1], held[:, 0])


def _spread(w: Waves, op: Operand, kind: str) -> Any:
    """[n, 16, k]: RDNA4 has 8 of the k in each half of the wave."""
    return factor(elements(w, op, kind, 8), ROWS)


def _floating(first: str, second: str, held: Any, result: Result) -> Run:
    """D = A · B + C in fp32, of factors of these kinds."""

    def run(w: Waves, ins: Instruction) -> None:
        require_all_lanes(w, ins, set())
        dst, a, b, c = ins.operands
        total = result.read(w, c, np.float32)
        result.write(w, dst, num.add_products(held(w, a, first), held(w, b, second), total))

    return run


def _integer(held: Any, result: Result) -> Run:
    """D = A · B + C in 32 bits; neg_lo says which of A and B is signed."""

    def run(w: Waves, ins: Instruction) -> None:
        require_all_lanes(w, ins, {"neg_lo"})
        dst, a_op, b_op, c = ins.operands
        a, b = (
            held(w, op, "i8" if s else "u8") for op, s in zip((a_op, b_op), ins.bits("neg_lo", (0, 0, 0)), strict=False)
        )
        exact = np.matmul(a, b.transpose(0, 2, 1)) + result.read(w, c, np.int32)
        result.write(w, dst, (exact & 0xFFFFFFFF).astype(np.uint32))

    return run


def _table(held: Any, result: Result, kinds: dict[str, tuple[str, str]]) -> dict[str, Run]:
    made = {f"v_wmma_f32_16x16x16_{name}": _floating(*k, held, result) for name, k in kinds.items()}
    return {**made, "v_wmma_i32_16x16x16_iu8": _integer(held, result)}


_HALVES = {"f16": ("f16", "f16"), "bf16": ("bf16", "bf16")}
_BYTES = {f"{a}_{b}": (a, b) for a in ("fp8", "bf8") for b in ("fp8", "bf8")}
RDNA3 = _table(_repeated, _INTERLEAVED, _HALVES)
RDNA4 = _table(_spread, _BLOCKS, _HALVES | _BYTES)
