"""How expert weights, and the activations that meet them, are coded: what each value of `quant` means."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.compare import nibbles
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import GATE_UP
from aiter_ops.ops.quant.dequant import E2M1
from aiter_ops.ops.quant.mx import BLOCK, exponent_value

Quant = Literal["none", "per_tensor", "per_token", "per_block", "mxfp4", "mxfp4_fp8"]

ExpertLayout = Literal["plain", "shuffled_16x16", "shuffled_16x16_gate_up"]

MX = ("mxfp4", "mxfp4_fp8")
"""Weights are packed MXFP4."""

UNCODED = ("none", "mxfp4")
"""Activations are not quantised."""

GROUP = 128
"""Side of a ``per_block`` weight block, and neighbours of a row of activations that share a scale."""


def second_layout(layout: str) -> str:
    """The layout of w2 where `layout` is that of w1: it has no gate and up."""
    return layout.removesuffix(GATE_UP)


def granule(quant: str) -> int:
    """What the sizes D and I, and their padding, are multiples of."""
    return GROUP if quant == "per_block" else BLOCK if quant in MX else 1


def unpacked(w: Tensor, quant: str) -> int:
    """Values in a row of `w`."""
    return w.shape[-1] * (2 if quant in MX else 1)


def weight_values(w: Tensor, scale: Tensor | None, quant: str) -> Tensor:
    """fp32 values [N, K] of one expert's weight, w [N, K] (MXFP4: [N, K/2])."""
    if scale is None:
        return w.float()
    if quant in MX:
        table = torch.tensor([*E2M1, *[-v for v in E2M1]], dtype=torch.float32, device=w.device)
        return table[nibbles(w).long()] * exponent_value(scale).repeat_interleave(BLOCK, -1)
    if quant == "per_tensor":
        return f.values_of(w) * scale.reshape(())
    if quant == "per_token":
        return f.values_of(w) * scale.reshape(-1, 1)
    rows = scale.repeat_interleave(GROUP, 0)[: w.shape[0]]
    return f.values_of(w) * rows.repeat_interleave(GROUP, 1)[:, : w.shape[1]]


def code_values(q: Tensor, scale: Tensor) -> Tensor:
    """fp32 values of codes [R, K] with scales of one element, [R], [R, 1] or [R, K/128]."""
    if scale.numel() == 1:
        return f.values_of(q) * scale.reshape(())
    scale = scale.reshape(q.shape[0], -1)
    return f.values_of(q) * scale.repeat_interleave(q.shape[1] // scale.shape[1], 1)


def through_codes(values: Tensor, quant: str, dtype: torch.dtype, static: Tensor | None, rows: Tensor) -> Tensor:
    """fp32 values [R, K] as the second factor sees them: quantised as `quant` says, and back.

    static: the scale, where it is given. rows: bool [R], those that count for the one scale of ``per_tensor``.
    """
    if quant in UNCODED:
        return values
    if quant == "per_block":
        return code_values(*f.quantise_groups(values, GROUP, dtype, "row", False))
    if static is not None:
        scale = static.reshape(1)
    elif quant == "per_tensor":
        peaks = torch.where(rows, values.abs().amax(-1), 0.0)
        scale = f.scale_of(torch.cat([peaks, peaks.new_zeros(1)]).amax(), dtype).reshape(1)
    else:
        return code_values(*f.quantise_rows(values, dtype))
    return code_values(f.encode(values, scale, dtype), scale)
