"""Cases of row-wise ops: rows × width of the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.platforms import platform

from .case import Case, Sets, Shapes, Values, short

ROWS = (1, 64, 8192, 16384)
WIDTHS = (4096, 7168, 8192)
LARGE_ROWS = 8192
"""From this many rows on a shape is bound by memory; below it by latency."""

KV_WIDTH = 512
"""Width of the second tensor of the dual norms (DeepSeek-V3's key-value latent)."""

_NUMBERS: dict[str, Any] = {"eps": 1e-6, "q_eps": 1e-6, "kv_eps": 1e-6, "pad_to": 256}

_DEQUANT: dict[str, Callable[[Sets, int, int], list[Any]]] = {
    "q": lambda draw, rows, width: draw.normal(rows, width, dtype=platform().fp8_dtype, scale=100.0),
    "scale": lambda draw, rows, width: draw.positive(rows, width // 128, scale=0.01),
    "out_dtype": lambda draw, rows, width: draw.same(torch.bfloat16),
}
"""dequant is the way back from group_quant: FP8 codes with a scale for 128 columns, to bf16."""


def cases(op: Op, shapes: Shapes) -> list[Case]:
    rows = shapes.counts(ROWS, (1, LARGE_ROWS), (1, 64))
    widths = shapes.widths or (WIDTHS[:1] if shapes.quick else WIDTHS)
    return [case(op, count, width) for count in rows for width in widths]


def case(op: Op, rows: int, width: int) -> Case:
    """width is the width of the result's rows: a gated activation reads 2 · width columns."""
    large, named = rows >= LARGE_ROWS, labels(rows, width)
    return Case(
        op.name,
        named["case"],
        named["group"],
        named["tick"],
        named["sizes"],
        lambda draw: _values(op, rows, width, draw),
        large=large,
        floor=None if large else op.signature.tensors[0].name,
        alike=str(width),
    )


def labels(rows: int, width: int) -> dict[str, Any]:
    """What a results file says of a case: its name, its place in the picture, its sizes."""
    return {
        "case": f"{rows}×{width}",
        "group": f"{rows} row{'s' if rows > 1 else ''}",
        "tick": short(width),
        "sizes": {"rows": rows, "width": width},
    }


def _values(op: Op, rows: int, width: int, draw: Sets) -> Values:
    """bf16, FP8 of this machine."""
    columns = 2 * width if op.family == "activation" else width
    values: Values = {}
    for p in op.signature.params:
        if op.name == "dequant" and p.name in _DEQUANT:
            values[p.name] = _DEQUANT[p.name](draw, rows, width)
        elif p.name in ("x", "residual", "z", "q"):
            values[p.name] = draw.normal(rows, columns)
        elif p.name == "kv":
            values[p.name] = draw.normal(rows, KV_WIDTH)
        elif p.name in ("weight", "q_weight", "kv_weight"):
            values[p.name] = draw.normal(KV_WIDTH if p.name == "kv_weight" else width, mean=1.0, scale=0.2)
        elif p.name == "bias" and op.name.endswith("layer_norm"):
            values[p.name] = draw.normal(width, scale=0.1)
        elif p.name == "bias":
            values[p.name] = draw.same(None)
        elif p.name == "scale":
            values[p.name] = draw.constant(0.01)
        elif p.name in _NUMBERS:
            values[p.name] = draw.same(_NUMBERS[p.name])
    return values
