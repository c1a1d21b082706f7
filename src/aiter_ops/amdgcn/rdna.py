"""Vector instructions that RDNA has and CDNA has not (AMD, "RDNA3" and "RDNA4 Instruction Set Architecture", sections VOP3 and
VOP3P).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import formats as fmt
from . import numbers as num
from .control import Run
from .errors import Unsupported
from .parse import EXEC, Instruction, Operand
from .state import Waves
from .vector import COMPARISONS, RELATIONS, plain, source

_LARGEST: dict[str, Callable[[Any, Any], Any]] = {"i32": np.maximum, "u32": np.maximum, "f32": num.max32}
_LEAST: dict[str, Callable[[Any, Any], Any]] = {"i32": np.minimum, "u32": np.minimum, "f32": num.min32}

OPS: dict[str, tuple[str, Callable[..., Any]]] = {
    "v_xor3_b32": ("u32 u32 u32 u32", lambda a, b, c: a ^ b ^ c),
    **{f"v_maxmin_{k}": (f"{k} {k} {k} {k}", lambda a, b, c, k=k: _LEAST[k](_LARGEST[k](a, b), c)) for k in _LARGEST},
    **{f"v_minmax_{k}": (f"{k} {k} {k} {k}", lambda a, b, c, k=k: _LARGEST[k](_LEAST[k](a, b), c)) for k in _LARGEST},
}
"""As vector.OPS."""


def _to_bf16(x: Any) -> Any:
    """Codes of fp64 numbers that are rounded to odd: to fp32 likewise, then once to nearest even."""
    near = x.astype(np.float32)
    bits, wide = near.view(np.uint32), near.astype(np.float64)
    move = (wide != x) & ~np.isnan(x) & (bits & 1 == 0)
    odd = np.where(move, np.where(np.abs(x) > np.abs(wide), bits + np.uint32(1), bits - np.uint32(1)), bits)
    return fmt.to_bf16(odd.view(np.float32))


def _dot2_bf16(w: Waves, ins: Instruction) -> None:
    """c + a₀ · b₀ + a₁ · b₁, each sum rounded to bf16."""
    if set(ins.mods) or any(op.neg or op.abs for op in ins.operands):
        raise Unsupported(f"modifiers of {ins.name}")
    a, b, c = (w.read(op, 0, 16) for op in ins.operands[1:])
    total = fmt.from_bf16(c & np.uint32(0xFFFF)).astype(np.float64)
    for shift in (np.uint32(0), np.uint32(16)):
        x, y = (fmt.from_bf16(bits >> shift & np.uint32(0xFFFF)).astype(np.float64) for bits in (a, b))
        product, added = np.broadcast_arrays(x * y, total)
        code = _to_bf16(num.sum_to_odd(np.ascontiguousarray(product), np.ascontiguousarray(added)))
        total = fmt.from_bf16(code).astype(np.float64)
    w.write_half(ins.operands[0], code, False)


def _permlane(w: Waves, ins: Instruction) -> None:
    """Lane i of a row of 16 reads, of its own row or (x16) the row beside it, the lane that four bits of two scalar sources
    say. op_sel: whether lanes that are off are read; whether else they give 0, or the result stays.
    """
    dst, value, low, high = ins.operands
    lane = np.arange(w.size)
    picks = w.scalar(low).astype(np.uint64) | w.scalar(high).astype(np.uint64) << np.uint64(32)
    picked = (picks[:, None] >> (4 * (lane & 15)).astype(np.uint64) & np.uint64(15)).astype(np.int64)
    row = (lane & ~15) ^ (16 if "x16" in ins.name else 0)
    rows, origin = np.arange(len(w))[:, None], row + picked
    fetch, zero = ins.bits("op_sel", (0, 0))[:2]
    valid = w.exec[rows, origin] | bool(fetch)
    moved = np.where(valid, np.broadcast_to(w.read(value), (len(w), w.size))[rows, origin], np.uint32(0))
    w.write(dst, moved, where=w.exec & (valid | bool(zero)))


def _compare_to_exec(w: Waves, ins: Instruction) -> None:
    """v_cmpx_…: a comparison whose result is EXEC alone."""
    if ins.encoding == "dpp" or "op_sel" in ins.mods:
        raise Unsupported(f"{ins.name} with DPP or op_sel")
    relation, kind = COMPARISONS[ins.name.replace("cmpx", "cmp")]
    made = RELATIONS[relation](source(w, ins, 0, kind), source(w, ins, 1, kind))
    w.set_lanes(Operand("s", EXEC), made)


TABLE: dict[str, Run] = {
    **{name: plain(*meaning) for name, meaning in OPS.items()},
    **{name.replace("cmp", "cmpx"): _compare_to_exec for name in COMPARISONS},
    "v_dot2_bf16_bf16": _dot2_bf16,
    "v_permlane16_b32": _permlane,
    "v_permlanex16_b32": _permlane,
}
