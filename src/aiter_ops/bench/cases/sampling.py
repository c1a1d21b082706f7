"""Cases of choosing tokens: rows × a model's vocabulary, bf16 logits with a temperature that leaves them peaked."""

from __future__ import annotations

import torch

from aiter_ops.core.op import Op

from .case import Case, Sets, Shapes, Values, short

ROWS = (1, 64, 512)
VOCABULARIES = (128256, 151936)
"""Llama 3 and Qwen"""

SPREAD, TEMPERATURE = 3.0, 0.8
"""Standard deviation of the logits: half of the mass is then on some hundred columns."""

TOP_K, TOP_P = 50, 0.9


def cases(op: Op, shapes: Shapes) -> list[Case]:
    rows = shapes.counts(ROWS, (1, 64), (1, 4))
    columns = VOCABULARIES if shapes.gpu else (2048,)
    if op.name == "greedy":
        return [case(op, count, width, "") for width in (columns[:1] if shapes.quick else columns) for count in rows]
    kinds = (f"top {TOP_K} {TOP_P}",) if shapes.quick else ("plain", f"top {TOP_K} {TOP_P}", f"top {TOP_P}")
    wide = [(columns[0], kind) for kind in kinds] + [(columns[-1], kind) for kind in kinds[:2]]
    return [case(op, count, *pair) for pair in dict.fromkeys(wide[:1] if shapes.quick else wide) for count in rows]


def case(op: Op, rows: int, columns: int, kind: str) -> Case:
    """kind: ``plain``, or what is cut off: ``top 50 0.9``, ``top 0.9``."""
    return Case(
        op.name,
        f"{rows}×{columns}{', ' if kind else ''}{kind}",
        f"{columns}{', ' if kind else ''}{kind}",
        short(rows),
        {"rows": rows, "columns": columns, "plain": int(kind == "plain")},
        lambda draw: _values(draw, rows, columns, kind),
        alike=f"{columns} {kind}",
    )


def _values(draw: Sets, rows: int, columns: int, kind: str) -> Values:
    values: Values = {"logits": draw.normal(rows, columns, scale=SPREAD)}
    if not kind:
        return values

    def each(value: float, dtype: torch.dtype) -> list[torch.Tensor]:
        return draw.same(torch.full((rows,), value, dtype=dtype, device=draw.device))

    cut = kind.split()[1:]
    return values | {
        "temperature": each(TEMPERATURE, torch.float32),
        "top_k": each(TOP_K, torch.int32) if len(cut) == 2 else draw.same(None),
        "top_p": each(TOP_P, torch.float32) if cut else draw.same(None),
        "min_p": draw.same(None),
        "seeds": draw.integers(0, 2**31 - 1, rows, dtype=torch.int64),
        "offsets": draw.integers(0, 2**20, rows, dtype=torch.int64),
    }
