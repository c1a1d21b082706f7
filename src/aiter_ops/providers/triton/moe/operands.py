"""What goes into a product: activations as codes with their scales, weights with theirs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aiter_ops.ops.formulas import CODES
from aiter_ops.providers.triton.quant.groups import quantise
from aiter_ops.providers.triton.quant.tensors import quantise_with

from .peaks import Served, quantise_together

SCALES = {"none": "none", "per_tensor": "row", "per_token": "row", "per_block": "block"}
"""How a product is scaled, by quant."""


@dataclass(frozen=True)
class Operand:
    """values [rows, K], or [E, rows, K] for weights, with unit stride in a row; expert, row, step: strides of `scale`
    between experts, between rows (or blocks of 128 rows) and between groups of 128 columns, 0 where one serves all.
    """

    values: Tensor
    scale: Tensor
    expert: int = 0
    row: int = 0
    step: int = 0


def unit_stride(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def weight(w: Tensor, scale: Tensor | None, quant: str) -> Operand:
    """w [E, rows, K] or [rows, K]."""
    w = unit_stride(w)
    if scale is None:
        return Operand(w, w)
    expert = scale.stride(0) if w.dim() == 3 else 0
    if quant == "per_tensor":
        return Operand(w, scale, expert)
    rows = w.dim() - 2
    return Operand(w, scale, expert, scale.stride(rows), scale.stride(-1) if quant == "per_block" else 0)


def activation(x: Tensor, quant: str, dtype: torch.dtype, given: Tensor | None, served: Served) -> Operand:
    """x [rows, K] as a product takes it. given: its scale, or where x holds codes their scales. served: the rows
    that count for one scale of all of them.
    """
    x = unit_stride(x)
    if quant == "none":
        return Operand(x, x)
    if x.dtype in CODES:
        assert given is not None
        one = given.numel() == 1
        return Operand(x, given, 0, 0 if one else given.stride(0), given.stride(1) if quant == "per_block" else 0)
    if quant == "per_block":
        q, scale = quantise(x, 128, dtype)
        return Operand(q, scale, 0, scale.stride(0), 1)
    if given is not None:
        return Operand(quantise_with(x, given, dtype), given)
    if quant == "per_tensor":
        return Operand(*quantise_together(x, dtype, served))
    q, scale = quantise(x, x.shape[1], dtype)
    return Operand(q, scale, 0, 1)
