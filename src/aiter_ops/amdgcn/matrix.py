"""Matrix instructions (AMD, "CDNA3 Instruction Set Architecture" and "CDNA4 Instruction Set Architecture", chapter Matrix
Arithmetic Instructions; layouts as AMD's matrix instruction calculator gives them, those of the block-scaled instructions
as Triton's AMD back end relies on them).

Products are exact; they are added to the accumulator one after another in the order of k, each sum rounded to fp32
(to nearest even). The hardware's order and intermediate width are not documented.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import formats as fmt
from . import numbers as num
from .errors import Unsupported
from .parse import Instruction, Operand
from .state import Waves

LANES = 64
_BITS = {"f32": 32, "bf16": 16, "f16": 16, "fp8": 8, "bf8": 8, "fp4": 4, "i8": 8, "u8": 8}
_FORMATS = {0: "fp8", 1: "bf8", 4: "fp4"}
"""By cbsz (A) and blgp (B) of the f8f6f4 instructions; 2 and 3 are the 6-bit formats."""


def elements(w: Waves, op: Operand, kind: str, count: int) -> Any:
    """[n, size, count]: the numbers a lane holds of a factor, as fp64 (integers as int64)."""
    words = [np.broadcast_to(w.read(op, i), (len(w), w.size)) for i in range(count * _BITS[kind] // 32)]
    raw = np.ascontiguousarray(np.stack(words, axis=2))
    if kind == "f32":
        return raw.view(np.float32).astype(np.float64)
    if kind == "bf16":
        return fmt.from_bf16(raw.view(np.uint16)).astype(np.float64)
    if kind == "f16":
        return raw.view(np.float16).astype(np.float64)
    if kind in ("fp8", "bf8"):
        values = fmt.E4M3_VALUES if kind == "fp8" else fmt.E5M2_VALUES
        return values[w.machine.fnuz][raw.view(np.uint8)].astype(np.float64)
    if kind == "fp4":
        codes = raw.view(np.uint8)
        return fmt.E2M1_VALUES[np.stack([codes & 15, codes >> 4], axis=3).reshape(*codes.shape[:2], -1)].astype(
            np.float64
        )
    return raw.view(np.int8 if kind == "i8" else np.uint8).astype(np.int64)


def factor(held: Any, rows: int, pieces: int = 1) -> Any:
    """[n, rows, k] of what the lanes [n, size, count] hold.

    Lane l has row (column) l mod rows; of each of the `pieces` equal parts of the k, those from
    (l div rows) · count / pieces on.
    """
    n, lanes, count = held.shape
    parts = held.reshape(n, lanes // rows, rows, pieces, count // pieces).transpose(0, 2, 3, 1, 4)
    return parts.reshape(n, rows, -1)


class Result:
    """Where D [rows, rows] lies: row, column: [lanes, registers], or such as broadcast to that."""

    def __init__(self, row: NDArray[Any], column: NDArray[Any]) -> None:
        self.row, self.column = row, np.broadcast_to(column, row.shape)
        self.rows, self.registers = int(row.max()) + 1, row.shape[1]

    @staticmethod
    def of_mfma(rows: int) -> Result:
        """Lane l holds column l mod rows; its registers are rows, in fours: register r of lane l is row
        4 · (l div rows) + r mod 4 + (64 · 4 div rows) · (r div 4).
        """
        lane, r = np.arange(LANES)[:, None], np.arange(rows * rows // LANES)
        return Result(4 * (lane // rows) + r % 4 + (4 * LANES // rows) * (r // 4), lane % rows)

    def read(self, w: Waves, op: Operand, kind: Any) -> Any:
        """[n, rows, rows]"""
        words = [
            np.broadcast_to(w.read(op, i if op.kind in "va" else 0), (len(w), w.size)) for i in range(self.registers)
        ]
        made = np.empty((len(w), self.rows, self.rows), kind)
        made[:, self.row, self.column] = np.stack(words, 2).view(kind)
        return made

    def write(self, w: Waves, op: Operand, total: Any) -> None:
        bits = np.ascontiguousarray(total[:, self.row, self.column]).view(np.uint32)
        for i in range(self.registers):
            w.write(op, bits[:, :, i], i)


def require_all_lanes(w: Waves, ins: Instruction, known: set[str]) -> None:
    if set(ins.mods) - known:
        raise Unsupported(f"modifiers of {ins.name}")
    if not w.full:
        raise Unsupported(f"{ins.name} with lanes that are off")


def _mfma(rows: int, depth: int, kind: str) -> Callable[[Waves, Instruction], None]:
    """D [rows, rows] = A [rows, depth] · B [depth, rows] + C, one block."""
    count, result = depth * rows // LANES, Result.of_mfma(rows)

    def run(w: Waves, ins: Instruction) -> None:
        require_all_lanes(w, ins, {"op_sel_hi"})
        dst, a_op, b_op, c_op = ins.operands
        a, b = (factor(elements(w, op, kind, count), rows) for op in (a_op, b_op))
        if kind != "i8":
            result.write(w, dst, num.add_products(a, b, result.read(w, c_op, np.float32)))
            return
        exact = np.matmul(a, b.transpose(0, 2, 1)) + result.read(w, c_op, np.int32)
        result.write(w, dst, (exact & 0xFFFFFFFF).astype(np.uint32))

    return run


def _block_scaled(rows: int, scaled: bool) -> Callable[[Waves, Instruction], None]:
    """The f8f6f4 products; with E8M0 scales of 32 k each where `scaled`.

    Every lane holds 32 of the k: for FP4 those from 32 · (l div rows) on, for FP8 16 of each half of the k. Whatever the
    format, the scale of row l mod rows and of the k from 32 · (l div rows) on is a byte of lane l: number
    op_sel + 2 · op_sel_hi.
    """
    result = Result.of_mfma(rows)

    def read(w: Waves, ins: Instruction, place: int) -> Any:
        code = ins.number("blgp" if place else "cbsz")
        if code not in _FORMATS:
            raise Unsupported(f"format {code} of {ins.name}")
        kind, op = _FORMATS[code], ins.operands[1 + place]
        if op.count != 32 * _BITS[kind] // 32:
            raise Unsupported(f"{op.count} registers of format {code} of {ins.name}")
        made = factor(elements(w, op, kind, 32), rows, 1 if kind == "fp4" else 2)
        if not scaled:
            return made
        register = ins.operands[4 + place]
        if register.kind not in "va":
            # the hardware takes other bits of constants and scalar registers
            raise Unsupported(f"a scale in {register.text or register.kind} of {ins.name}")
        byte = ins.bits("op_sel", (0, 0, 0))[place] + 2 * ins.bits("op_sel_hi", (1, 1, 1))[place]
        scales = fmt.e8m0((w.read(register) >> np.uint32(8 * byte)) & np.uint32(255))
        return made * np.repeat(factor(scales[:, :, None], rows), 32, axis=2)

    def run(w: Waves, ins: Instruction) -> None:
        require_all_lanes(w, ins, {"op_sel", "op_sel_hi", "cbsz", "blgp"} if scaled else {"op_sel_hi", "cbsz", "blgp"})
        a, b = read(w, ins, 0), read(w, ins, 1)
        result.write(w, ins.operands[0], num.add_products(a, b, result.read(w, ins.operands[3], np.float32)))

    return run


TABLE = {
    # CDNA2 (gfx90a)
    "v_mfma_f32_16x16x4f32": _mfma(16, 4, "f32"),
    "v_mfma_f32_32x32x2f32": _mfma(32, 2, "f32"),
    "v_mfma_f32_16x16x16f16": _mfma(16, 16, "f16"),
    "v_mfma_f32_32x32x8f16": _mfma(32, 8, "f16"),
    "v_mfma_f32_16x16x16bf16_1k": _mfma(16, 16, "bf16"),
    "v_mfma_f32_32x32x8bf16_1k": _mfma(32, 8, "bf16"),
    "v_mfma_i32_16x16x16i8": _mfma(16, 16, "i8"),
    "v_mfma_i32_32x32x8i8": _mfma(32, 8, "i8"),
    # CDNA3 (gfx942)
    "v_mfma_f32_16x16x16_bf16": _mfma(16, 16, "bf16"),
    "v_mfma_f32_16x16x16_f16": _mfma(16, 16, "f16"),
    "v_mfma_f32_16x16x4_f32": _mfma(16, 4, "f32"),
    "v_mfma_f32_16x16x32_fp8_fp8": _mfma(16, 32, "fp8"),
    "v_mfma_f32_16x16x32_bf8_bf8": _mfma(16, 32, "bf8"),
    "v_mfma_i32_16x16x32_i8": _mfma(16, 32, "i8"),
    "v_mfma_f32_32x32x8_bf16": _mfma(32, 8, "bf16"),
    "v_mfma_f32_32x32x8_f16": _mfma(32, 8, "f16"),
    "v_mfma_f32_32x32x2_f32": _mfma(32, 2, "f32"),
    "v_mfma_f32_32x32x16_fp8_fp8": _mfma(32, 16, "fp8"),
    "v_mfma_f32_32x32x16_bf8_bf8": _mfma(32, 16, "bf8"),
    "v_mfma_i32_32x32x16_i8": _mfma(32, 16, "i8"),
    # CDNA4 (gfx950)
    "v_mfma_f32_16x16x32_bf16": _mfma(16, 32, "bf16"),
    "v_mfma_f32_16x16x32_f16": _mfma(16, 32, "f16"),
    "v_mfma_f32_32x32x16_bf16": _mfma(32, 16, "bf16"),
    "v_mfma_f32_32x32x16_f16": _mfma(32, 16, "f16"),
    "v_mfma_i32_16x16x64_i8": _mfma(16, 64, "i8"),
    "v_mfma_i32_32x32x32_i8": _mfma(32, 32, "i8"),
    "v_mfma_f32_16x16x128_f8f6f4": _block_scaled(16, False),
    "v_mfma_f32_32x32x64_f8f6f4": _block_scaled(32, False),
    "v_mfma_scale_f32_16x16x128_f8f6f4": _block_scaled(16, True),
    "v_mfma_scale_f32_32x32x64_f8f6f4": _block_scaled(32, True),
}
