"""Norms and what is fused with them. FP8 is this machine's format throughout, as in vLLM."""

from __future__ import annotations

import torch
from torch import Tensor

import aiter_ops as ops

from ..table import face


@face("rms_norm")
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm of [..., N]."""
    return ops.rms_norm(x, weight, epsilon)


@face("add_rms_norm")
def rms_norm2d_with_add(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of x + residual, and that sum. AITER's 7th positional argument, whose meaning changed, is not there."""
    return ops.add_rms_norm(x, residual, weight, epsilon)


@face("rms_norm_dynamic_quant", row=20, op="rocm_aiter_rmsnorm_fused_dynamic_quant", methods=())
def rmsnorm_fused_dynamic_quant(
    x: Tensor, weight: Tensor, epsilon: float, quant_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(q, scale [M, 1])."""
    return ops.rms_norm_dynamic_quant(x, weight, epsilon, quant_dtype)


@face("add_rms_norm_dynamic_quant", row=21, op="rocm_aiter_rmsnorm_fused_add_dynamic_quant", methods=())
def rmsnorm_fused_add_dynamic_quant(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, quant_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, x + residual, scale [M, 1]); the op of the layer returns the sum last."""
    q, scale, h = ops.add_rms_norm_dynamic_quant(x, residual, weight, epsilon, quant_dtype)
    return q, h, scale


@face("rms_norm_static_quant", row=39, op="rocm_aiter_fused_rms_fp8_per_tensor_static_quant", methods=())
def fused_rms_fp8_per_tensor_static_quant(
    x: Tensor, weight: Tensor, epsilon: float, scale: Tensor, quant_dtype: torch.dtype
) -> Tensor:
    """q by the given scale."""
    return ops.rms_norm_static_quant(x, weight, scale, epsilon, quant_dtype)


@face("add_rms_norm_static_quant", row=40, op="rocm_aiter_fused_add_rms_fp8_per_tensor_static_quant", methods=())
def fused_add_rms_fp8_per_tensor_static_quant(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, scale: Tensor, quant_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(q by the given scale, x + residual)."""
    return ops.add_rms_norm_static_quant(x, residual, weight, scale, epsilon, quant_dtype)


@face("rms_norm_group_quant", row=22, op="rocm_aiter_rmsnorm_fp8_group_quant", methods=())
def rmsnorm_fp8_group_quant(
    x: Tensor, weight: Tensor, variance_epsilon: float, group_size: int
) -> tuple[Tensor, Tensor]:
    """(q, scales [M, N/group_size])."""
    return ops.rms_norm_group_quant(x, weight, variance_epsilon, group_size)


@face("add_rms_norm_group_quant", row=23, op="rocm_aiter_rmsnorm_with_add_fp8_group_quant", methods=())
def rmsnorm_with_add_fp8_group_quant(
    x: Tensor, residual: Tensor, weight: Tensor, variance_epsilon: float, group_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, x + residual, scales)."""
    q, scale, h = ops.add_rms_norm_group_quant(x, residual, weight, variance_epsilon, group_size)
    return q, h, scale


@face("gated_rms_norm_group_quant", row=24, op="rocm_aiter_fused_rms_gated_fp8_group_quant", methods=())
def fused_rms_gated_fp8_group_quant(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor,
    eps: float,
    norm_before_gate: bool,
    activation: str,
    group_size: int,
) -> tuple[Tensor, Tensor]:
    """(q, scales) of RMSNorm(x)·act(z) or the other order; "swish" is silu."""
    activation = "silu" if activation == "swish" else activation
    return ops.gated_rms_norm_group_quant(x, weight, bias, z, eps, norm_before_gate, activation, group_size)


@face("add_rms_norm_pad", row=29, op="rocm_aiter_triton_add_rmsnorm_pad", methods=())
def triton_add_rmsnorm_pad(
    x: Tensor, weight: Tensor, variance_epsilon: float, residual: Tensor, x_pad_to_multiple: int
) -> tuple[Tensor, Tensor]:
    """(RMSNorm of x + residual, rows padded with zeros; x + residual)."""
    return ops.add_rms_norm_pad(x, residual, weight, variance_epsilon, x_pad_to_multiple)


@face("dual_rms_norm", row=30, op="fused_mla_dual_rms_norm", methods=())
def fused_mla_dual_rms_norm(
    x1: Tensor, x1_weight: Tensor, x2: Tensor, x2_weight: Tensor, x1_epsilon: float, x2_epsilon: float
) -> tuple[Tensor, Tensor]:
    """Two RMSNorms."""
    return ops.dual_rms_norm(x1, x1_weight, x2, x2_weight, x1_epsilon, x2_epsilon)


@face("dual_rms_norm_dynamic_quant", row=31, op="fused_mla_dual_rms_norm_per_token_quant", methods=())
def fused_mla_dual_rms_norm_per_token_quant(
    q: Tensor, q_weight: Tensor, kv: Tensor, kv_weight: Tensor, q_epsilon: float, kv_epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(q FP8, its scale [M, 1], kv normalised)."""
    return ops.dual_rms_norm_dynamic_quant(q, q_weight, kv, kv_weight, q_epsilon, kv_epsilon)


@face("dual_rms_norm_group_quant", row=32, op="fused_mla_dual_rms_norm_group_quant", methods=())
def fused_mla_dual_rms_norm_group_quant(
    q: Tensor,
    q_weight: Tensor,
    kv: Tensor,
    kv_weight: Tensor,
    q_epsilon: float,
    kv_epsilon: float,
    group_size: int,
    transpose_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q FP8, its scales, kv normalised); with transpose_scale the scales' strides say that columns are contiguous."""
    layout = "col" if transpose_scale else "row"
    return ops.dual_rms_norm_group_quant(
        q, q_weight, kv, kv_weight, q_epsilon, kv_epsilon, group_size, scale_layout=layout
    )


@face("dual_rms_norm_group_quant")
def fused_qk_rmsnorm_group_quant(
    q: Tensor,
    q_weight: Tensor,
    q_epsilon: float,
    kv: Tensor,
    kv_weight: Tensor,
    kv_epsilon: float,
    group_size: int = 128,
    transpose_scale: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row 32 in the order of vLLM's method."""
    return fused_mla_dual_rms_norm_group_quant(
        q, q_weight, kv, kv_weight, q_epsilon, kv_epsilon, group_size, transpose_scale
    )
