"""silu(gate)·up, quantised before it leaves the registers: the kernels of the quant room, reading two halves."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import fp8_predicate
from aiter_ops.providers.triton.quant.groups import quantise


def _group_refusal(target: Platform) -> Predicate:
    return lambda x, group_size, dtype, scale_layout, ue8m0: fp8_predicate(target, dtype)


@PROVIDER.implements("silu_and_mul_group_quant", refuses=_group_refusal, batch_invariant=True)
def silu_and_mul_group_quant(
    x: Tensor,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    return quantise(x, group_size, dtype, scale_layout, ue8m0, silu=True)


@PROVIDER.implements(
    "silu_and_mul_dynamic_quant", refuses=lambda t: lambda x, dtype: fp8_predicate(t, dtype), batch_invariant=True
)
def silu_and_mul_dynamic_quant(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    return quantise(x, x.shape[-1] // 2, dtype, silu=True)
