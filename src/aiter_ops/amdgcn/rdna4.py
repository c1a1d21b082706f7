"""What RDNA4 has and RDNA3 has not: scalar floating-point and 64-bit arithmetic, and maxima for which a signalling NaN is no
number like a quiet one (AMD, "RDNA4 Instruction Set Architecture", sections SOP1, SOP2, SOPC and VOP3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import numbers as num
from .control import Run
from .errors import Unsupported
from .parse import Instruction
from .state import Waves
from .vector import OPS as VECTOR
from .vector import RELATIONS, plain


def _quiet(x: Any) -> Any:
    return np.where(np.isnan(x), np.float32(np.nan), x)


def _of_quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: function(*map(_quiet, values))


_F2, _F3 = "f32 f32 f32", "f32 f32 f32 f32"
OPS: dict[str, tuple[str, Callable[..., Any]]] = {
    "v_max_num_f32": (_F2, _of_quiet(num.max32)),
    "v_min_num_f32": (_F2, _of_quiet(num.min32)),
    "v_max3_num_f32": (_F3, _of_quiet(lambda a, b, c: num.max32(num.max32(a, b), c))),
    "v_min3_num_f32": (_F3, _of_quiet(lambda a, b, c: num.min32(num.min32(a, b), c))),
    "v_med3_num_f32": (_F3, _of_quiet(num.med32)),
    "v_maxmin_num_f32": (_F3, _of_quiet(lambda a, b, c: num.min32(num.max32(a, b), c))),
    "v_minmax_num_f32": (_F3, _of_quiet(lambda a, b, c: num.max32(num.min32(a, b), c))),
}
"""As vector.OPS."""

SCALAR: dict[str, tuple[str, Callable[..., Any]]] = {
    "s_add_f32": (_F2, lambda a, b: a + b),
    "s_sub_f32": (_F2, lambda a, b: a - b),
    "s_mul_f32": (_F2, lambda a, b: a * b),
    "s_max_num_f32": OPS["v_max_num_f32"],
    "s_min_num_f32": OPS["v_min_num_f32"],
    "s_fmaak_f32": (_F3, num.fma32),
    "s_fmamk_f32": (_F3, num.fma32),
    **{
        f"s_{name}": VECTOR[f"v_{name}"]
        for name in (
            *("trunc_f32", "floor_f32", "ceil_f32", "rndne_f32"),
            *("cvt_f32_i32", "cvt_f32_u32", "cvt_i32_f32", "cvt_u32_f32"),
        )
    },
    **{f"v_s_{f}_f32": VECTOR[f"v_{f}_f32"] for f in ("rcp", "rsq", "sqrt", "exp", "log")},
}
"""Types of the result and the sources, and a function of [n] arrays."""

WIDE: dict[str, Callable[[Any, Any], Any]] = {
    "s_add_nc_u64": lambda a, b: a + b,
    "s_sub_nc_u64": lambda a, b: a - b,
    "s_mul_u64": lambda a, b: a * b,
}
_KINDS: dict[str, Any] = {"f32": np.float32, "i32": np.int32, "u32": np.uint32}


def _scalar(w: Waves, ins: Instruction) -> None:
    types, function = SCALAR[ins.name]
    out, *kinds = types.split()
    if ins.mods or (kinds[0] != "f32" and any(op.neg or op.abs for op in ins.operands)):
        raise Unsupported(f"modifiers of {ins.name}")
    values = [w.scalar(op).view(_KINDS[k]) for op, k in zip(ins.operands[1:], kinds, strict=True)]
    values = [np.abs(x) if op.abs else x for x, op in zip(values, ins.operands[1:], strict=True)]
    made = function(*(-x if op.neg else x for x, op in zip(values, ins.operands[1:], strict=True)))
    w.set_s(ins.operands[0].index, np.ascontiguousarray(made).astype(_KINDS[out], copy=False).view(np.uint32))


def _fmac(w: Waves, ins: Instruction) -> None:
    dst, a, b = ins.operands
    made = num.fma32(*(w.scalar(op).view(np.float32) for op in (a, b, dst)))
    w.set_s(dst.index, made.view(np.uint32))


def _wide(w: Waves, ins: Instruction) -> None:
    dst, a, b = ins.operands
    w.set_s64(dst.index, WIDE[ins.name](w.scalar64(a), w.scalar64(b)))


def _compare(w: Waves, ins: Instruction) -> None:
    a, b = (w.scalar(op).view(np.float32) for op in ins.operands)
    w.scc = np.asarray(RELATIONS[ins.name.split("_")[2]](a, b))


TABLE: dict[str, Run] = {
    **{name: plain(*meaning) for name, meaning in OPS.items()},
    **dict.fromkeys(SCALAR, _scalar),
    **dict.fromkeys(WIDE, _wide),
    **{f"s_cmp_{relation}_f32": _compare for relation in RELATIONS if relation != "ne"},
    "s_fmac_f32": _fmac,
}
