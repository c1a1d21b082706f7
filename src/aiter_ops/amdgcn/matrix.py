"""Matrix instructions (AMD, "CDNA3 Instruction Set Architecture", chapter Matrix Arithmetic Instructions; layouts as
AMD's matrix instruction calculator gives them).

Products are exact; they are added to the accumulator one after another in the order of k, each sum rounded to fp32
(to nearest even). The hardware's order and intermediate width are not documented.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import numbers as num
from .errors import Unsupported
from .parse import Instruction, Operand
from .state import LANES, Waves

_LANE = np.arange(LANES)


def _elements(w: Waves, op: Operand, kind: str, count: int) -> Any:
    """[n, 64, count]: the numbers a lane holds of a factor, as fp64 (integers as int64)."""
    size = {"f32": 4, "bf16": 2, "f16": 2, "fp8": 1, "i8": 1}[kind]
    words = [np.broadcast_to(w.read(op, i), (len(w), LANES)) for i in range(count * size // 4)]
    raw = np.ascontiguousarray(np.stack(words, axis=2))
    if kind == "f32":
        return raw.view(np.float32).astype(np.float64)
    if kind == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind == "f16":
        return raw.view(np.float16).astype(np.float64)
    if kind == "fp8":
        return num.E4M3[w.machine.fnuz][raw.view(np.uint8)].astype(np.float64)
    return raw.view(np.int8).astype(np.int64)


def _mfma(rows: int, depth: int, kind: str) -> Callable[[Waves, Instruction], None]:
    """D [rows, rows] = A [rows, depth] · B [depth, rows] + C, one block.

    Lane l holds row (column) l mod rows and the k from (l div rows) · count on. D: lane l holds column l mod rows; its
    registers are rows, in fours: register r of lane l is row 4 · (l div rows) + r mod 4 + (64 · 4 div rows) · (r div 4).
    """
    count = depth * rows // LANES
    registers = rows * rows // LANES
    r = np.arange(registers)
    row = 4 * (_LANE[:, None] // rows) + r % 4 + (4 * LANES // rows) * (r // 4)
    column = np.broadcast_to((_LANE % rows)[:, None], row.shape)

    def run(w: Waves, ins: Instruction) -> None:
        if set(ins.mods) - {"op_sel_hi"}:
            raise Unsupported(f"modifiers of {ins.name}")
        if not w.full:
            raise Unsupported(f"{ins.name} with lanes that are off")
        dst, a_op, b_op, c_op = ins.operands
        n = len(w)
        # [n, row, k]: lane (k div count) · rows + row holds it
        a, b = (
            _elements(w, op, kind, count)
            .reshape(n, LANES // rows, rows, count)
            .transpose(0, 2, 1, 3)
            .reshape(n, rows, depth)
            for op in (a_op, b_op)
        )
        integer = kind == "i8"
        c_bits = np.stack(
            [np.broadcast_to(w.read(c_op, i if c_op.kind in "va" else 0), (n, LANES)) for i in range(registers)], 2
        )
        total = np.empty((n, rows, rows), np.int64 if integer else np.float32)
        total[:, row, column] = c_bits.view(np.int32 if integer else np.float32)
        for k in range(depth):
            product = a[:, :, None, k] * b[:, None, :, k]
            if integer:
                total += product
            else:
                total = num.sum_to_odd(product, total.astype(np.float64)).astype(np.float32)
        out = total[:, row, column]
        bits = (out & 0xFFFFFFFF).astype(np.uint32) if integer else np.ascontiguousarray(out).view(np.uint32)
        for i in range(registers):
            w.write(dst, bits[:, :, i], i)

    return run


TABLE = {
    "v_mfma_f32_16x16x16_bf16": _mfma(16, 16, "bf16"),
    "v_mfma_f32_16x16x16_f16": _mfma(16, 16, "f16"),
    "v_mfma_f32_16x16x4_f32": _mfma(16, 4, "f32"),
    "v_mfma_f32_16x16x32_fp8_fp8": _mfma(16, 32, "fp8"),
    "v_mfma_i32_16x16x32_i8": _mfma(16, 32, "i8"),
    "v_mfma_f32_32x32x8_bf16": _mfma(32, 8, "bf16"),
    "v_mfma_f32_32x32x8_f16": _mfma(32, 8, "f16"),
    "v_mfma_f32_32x32x2_f32": _mfma(32, 2, "f32"),
    "v_mfma_f32_32x32x16_fp8_fp8": _mfma(32, 16, "fp8"),
    "v_mfma_i32_32x32x16_i8": _mfma(32, 16, "i8"),
}
