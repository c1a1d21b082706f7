"""What goes into a product: activations as codes with their scales, weights with theirs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aiter_ops.ops.formulas import CODES, FP8
from aiter_ops.ops.layout import GATE_UP
from aiter_ops.ops.moe.formats import UNCODED
from aiter_ops.providers.triton.launch import machine
from aiter_ops.providers.triton.quant.groups import quantise
from aiter_ops.providers.triton.quant.tensors import quantise_with
from aiter_ops.providers.triton.tiles.gemm import k_first as rows_as_columns
from aiter_ops.providers.triton.tiles.gemm_mx import MATRIX_UNITS_WITH_SCALES

from .peaks import Served, quantise_together

SCALES = {
    "none": "none",
    "per_tensor": "row",
    "per_token": "row",
    "per_block": "block",
    "mxfp4": "none",
    "mxfp4_fp8": "a",
}
"""How a product is scaled, by quant."""


@dataclass(frozen=True)
class Operand:
    """values [rows, K], or [E, rows, K] for weights, with unit stride in a row; expert, row, step: strides of `scale`
    between experts, between rows (or blocks of 128 rows) and between groups of columns, 0 where one serves all.
    shuffled: values lie in tiles of 16 rows; turns: those of a gate and of its up in turn.
    """

    values: Tensor
    scale: Tensor | None = None
    expert: int = 0
    row: int = 0
    step: int = 0
    shuffled: bool = False
    turns: bool = False

    def unpacking(self, a: Tensor) -> tuple[str, bool]:
        """How a product of `a` with these weights takes them: MX and FAST of `products.product`."""
        if self.values.dtype != torch.uint8:
            return "none", False
        arch = machine().arch
        native = a.dtype in FP8 and arch in MATRIX_UNITS_WITH_SCALES
        return "native" if native else "plain", arch.startswith("gfx9")


def unit_stride(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def apart(t: Tensor) -> bool:
    """Whether each step of a product of `t` is summed in fp32 by itself, see `summed`."""
    return machine().vendor == "nvidia" and t.dtype in FP8


def k_first(w: Operand) -> bool:
    """Whether a product with these weights reads them as [K, N], see `summed`; packed ones are unpacked as [N, K]."""
    return w.values.dtype != torch.uint8 and rows_as_columns(machine(), w.values.element_size())


def weight(w: Tensor, scale: Tensor | None, quant: str, layout: str) -> Operand:
    """w [E, rows, K] or [rows, K]."""
    shuffled, turns = layout != "plain", layout.endswith(GATE_UP)
    w = w.contiguous() if shuffled else unit_stride(w)
    if scale is None:
        return Operand(w, shuffled=shuffled, turns=turns)
    expert = scale.stride(0) if w.dim() == 3 else 0
    if quant == "per_tensor":
        return Operand(w, scale, expert, shuffled=shuffled, turns=turns)
    row, step = scale.stride(w.dim() - 2), 0 if quant == "per_token" else scale.stride(-1)
    return Operand(w, scale, expert, row, step, shuffled, turns)


def activation(x: Tensor, quant: str, dtype: torch.dtype, given: Tensor | None, served: Served) -> Operand:
    """x [rows, K] as a product takes it. given: its scale, or where x holds codes their scales. served: the rows
    that count for one scale of all of them.
    """
    x = unit_stride(x)
    if quant in UNCODED:
        return Operand(x)
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
