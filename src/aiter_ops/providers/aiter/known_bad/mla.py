"""Evidence against AITER's MLA decoding, beside what its adapter refuses anyway."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.evidence import KnownBad
from aiter_ops.ops.formulas import FP8

from .sources import AITER


def _pages(q: Tensor, kv_buffer: Tensor, *rest: Any) -> bool:
    return kv_buffer.shape[1] > 1


def _mixed(q: Tensor, kv_buffer: Tensor, *rest: Any) -> bool:
    return q.dtype == torch.bfloat16 and kv_buffer.dtype in FP8


def _many_rows(q: Tensor, kv_buffer: Tensor, *rest: Any) -> bool:
    return q.shape[1] <= 16 and rest[5] > 4  # max_q


def _row(reason: str, source: str, applies: Any, **where: Any) -> tuple[KnownBad, ...]:
    ops = ("mla_decode", "mla_decode_lse")
    return tuple(KnownBad(op, "aiter", reason, source, applies=applies, **where) for op in ops)


ROWS: tuple[KnownBad, ...] = (
    *_row("pages of several tokens give wrong results", f"{AITER}/issues/3095", _pages),
    *_row(
        "no kernel for bfloat16 queries on an FP8 cache: the process ends",
        "https://github.com/vllm-project/vllm/issues/51232",
        _mixed,
        arch="gfx950",
    ),
    *_row("wrong results for 8 rows a sequence", f"{AITER}/issues/5679", _many_rows, arch="gfx942"),
)
