"""RMSNorm, alone, after a residual addition, and padded."""

from __future__ import annotations

from torch import Tensor

from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import new_like

from .single import normalise


@PROVIDER.implements("rms_norm", batch_invariant=True)
def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float = 0.0, cast_before_weight: bool = False
) -> Tensor:
    y = new_like(x)
    normalise(x, y, weight, eps, offset=weight_offset, cast=cast_before_weight)
    return y


@PROVIDER.implements("add_rms_norm", batch_invariant=True)
def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    weight_offset: float = 0.0,
    cast_before_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    y = new_like(x)
    h = new_like(x)
    normalise(x, y, weight, eps, other=residual, use="add", h=h, offset=weight_offset, cast=cast_before_weight)
    return y, h


@PROVIDER.implements("add_rms_norm_pad", batch_invariant=True)
def add_rms_norm_pad(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, pad_to: int
) -> tuple[Tensor, Tensor]:
    *leading, width = x.shape
    y = x.new_empty((*leading, -(-width // pad_to) * pad_to), dtype=x.dtype)
    h = new_like(x)
    normalise(x, y, weight, eps, other=residual, use="add", h=h)
    return y, h
