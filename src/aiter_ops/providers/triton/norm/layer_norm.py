"""Layer normalisation, alone and after a residual addition."""

from __future__ import annotations

from torch import Tensor

from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import new_like

from .single import normalise


@PROVIDER.implements("layer_norm", batch_invariant=True)
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    y = new_like(x)
    normalise(x, y, weight, eps, bias=bias, layer=True)
    return y


@PROVIDER.implements("add_layer_norm", batch_invariant=True)
def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    y = new_like(x)
    h = new_like(x)
    normalise(x, y, weight, eps, bias=bias, other=residual, use="add", h=h, layer=True)
    return y, h
