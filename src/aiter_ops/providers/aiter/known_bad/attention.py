"""Evidence against AITER's attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.evidence import KnownBad

from .sources import AITER


def _one_query(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> bool:
    """`max_q` is the first whole number among the arguments after the tensors."""
    max_q = next(value for value in rest if isinstance(value, int))
    return max_q == 1 and not (q.dtype == torch.bfloat16 and q.shape[2] == 128)


ROWS: tuple[KnownBad, ...] = tuple(
    KnownBad(
        op,
        "aiter",
        "wrong for sequences of one query but in bf16 with heads of 128 columns",
        f"{AITER}/issues/2229",
        arch="gfx942",
        applies=_one_query,
    )
    for op in ("flash_attn_varlen", "flash_attn_varlen_lse", "flash_attn_varlen_out")
)
