"""Quantisation on its own and after an activation."""

from __future__ import annotations

import torch
from torch import Tensor

import aiter_ops as ops

from ..table import face, only


@face("silu_and_mul_group_quant", row=25, op="rocm_aiter_act_mul_and_fp8_group_quant", methods=())
def act_mul_and_fp8_group_quant(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """(q, scales) of silu(first half)·second half."""
    return ops.silu_and_mul_group_quant(x, group_size)


@face("group_quant", row=26, op="rocm_aiter_group_fp8_quant", methods=())
def rocm_group_fp8_quant(x: Tensor, group_size: int, transpose_scale: bool = False) -> tuple[Tensor, Tensor]:
    """(q, scales [M, N/group_size]) of any group size; with transpose_scale the strides say so."""
    return ops.group_quant(x, group_size, scale_layout="col" if transpose_scale else "row")


@face("group_quant")
def group_fp8_quant(input_2d: Tensor, group_size: int = 128, transpose_scale: bool = False) -> tuple[Tensor, Tensor]:
    """Row 26, whose group may have any size that divides the row."""
    return rocm_group_fp8_quant(input_2d, group_size, transpose_scale)


@face(
    "per_tensor_quant",
    "per_tensor_quant_static",
    row=27,
    op="rocm_aiter_per_tensor_quant",
    mutates=("out", "scale"),
    methods=(),
)
def rocm_per_tensor_quant(out: Tensor, x: Tensor, scale: Tensor, is_dynamic: bool) -> None:
    """Writes the codes to `out` and, where is_dynamic, the scale to `scale`, which is only read otherwise."""
    if is_dynamic:
        q, found = ops.per_tensor_quant(x, out.dtype)
        scale.copy_(found.reshape(scale.shape))
    else:
        q = ops.per_tensor_quant_static(x, scale, out.dtype)
    out.copy_(q)


@face("per_tensor_quant", "per_tensor_quant_static")
def per_tensor_quant(x: Tensor, quant_dtype: torch.dtype, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(q, scale): dynamic without a scale, else by the given one, which is returned untouched."""
    if scale is None:
        return ops.per_tensor_quant(x, quant_dtype)
    return ops.per_tensor_quant_static(x, scale, quant_dtype), scale


@face("per_token_quant", row=28, op="rocm_aiter_per_token_quant")
def per_token_quant(x: Tensor, quant_dtype: torch.dtype, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(q, scale [..., 1]), always dynamic."""
    only("per_token_quant", "scale", scale, (None,), "the scale of a token is computed, and yours would be overwritten")
    return ops.per_token_quant(x, quant_dtype)
