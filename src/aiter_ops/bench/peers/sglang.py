"""sglang-kernel's binary ops: ``torch.ops.sgl_kernel``. Its norms are started with programmatic dependent launch."""

from __future__ import annotations

from typing import Any

import torch

from .common import (
    GROUP_AMAX_FLOOR,
    Quantised,
    any_weight,
    dtype_range,
    dual_norm,
    filling,
    fp8_only,
    group_scale,
    group_size,
    half_width,
    in_turn,
    like,
    need,
    no_limit,
    no_ue8m0,
    output_dtype,
    quantised,
    token_scale,
)
from .registry import Call, Kwargs, peer


def sgl(name: str) -> Any:
    return getattr(torch.ops.sgl_kernel, name).default


@peer("rms_norm", "sglang")
def sgl_rms_norm(kw: Kwargs) -> Call:
    y = like(kw["x"])
    return filling(y, sgl(sgl_norm_name(kw, "rmsnorm")), y, kw["x"], any_weight(kw), kw["eps"], True)


def sgl_norm_name(kw: Kwargs, name: str) -> str:
    offset = kw.get("weight_offset") or 0.0
    need(offset in (0.0, 1.0), "weight offset 0 or 1 only")
    return f"gemma_{name}" if offset else name


@peer("add_rms_norm", "sglang")
def sgl_add_rms_norm(kw: Kwargs) -> Call:
    y, h = kw["x"].clone(), kw["residual"].clone()
    return filling((y, h), sgl(sgl_norm_name(kw, "fused_add_rmsnorm")), y, h, any_weight(kw), kw["eps"], True)


@peer("rms_norm_dynamic_quant", "sglang.two")
def sgl_rms_norm_then_token_quant(kw: Kwargs) -> Call:
    y = like(kw["x"])
    norm = filling(None, sgl(sgl_norm_name(kw, "rmsnorm")), y, kw["x"], any_weight(kw), kw["eps"], True)
    q, scale, quantise = sgl_token(kw, y)
    return in_turn((q, scale), norm, quantise)


@peer("add_rms_norm_dynamic_quant", "sglang.two")
def sgl_add_rms_norm_then_token_quant(kw: Kwargs) -> Call:
    y, h = kw["x"].clone(), kw["residual"].clone()
    norm = filling(None, sgl(sgl_norm_name(kw, "fused_add_rmsnorm")), y, h, any_weight(kw), kw["eps"], True)
    q, scale, quantise = sgl_token(kw, y)
    return in_turn((q, scale, h), norm, quantise)


@peer("rms_norm_group_quant", "sglang.two")
def sgl_rms_norm_then_group_quant(kw: Kwargs) -> Call:
    y = like(kw["x"])
    norm = filling(None, sgl(sgl_norm_name(kw, "rmsnorm")), y, kw["x"], any_weight(kw), kw["eps"], True)
    q, scale, quantise = sgl_group(kw, y)
    return in_turn((q, scale), norm, quantise)


@peer("add_rms_norm_group_quant", "sglang.two")
def sgl_add_rms_norm_then_group_quant(kw: Kwargs) -> Call:
    y, h = kw["x"].clone(), kw["residual"].clone()
    norm = filling(None, sgl(sgl_norm_name(kw, "fused_add_rmsnorm")), y, h, any_weight(kw), kw["eps"], True)
    q, scale, quantise = sgl_group(kw, y)
    return in_turn((q, scale, h), norm, quantise)


@peer("dual_rms_norm", "sglang.two")
def sgl_dual_rms_norm(kw: Kwargs) -> Call:
    return dual_norm(kw, sgl_rms_norm)


@peer("silu_and_mul", "sglang")
def sgl_silu_and_mul(kw: Kwargs) -> Call:
    no_limit(kw)
    y = half_width(kw["x"])
    return filling(y, sgl("silu_and_mul"), y, kw["x"])


@peer("gelu_and_mul", "sglang")
def sgl_gelu_and_mul(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    return filling(y, sgl("gelu_and_mul"), y, kw["x"])


@peer("gelu_tanh_and_mul", "sglang")
def sgl_gelu_tanh_and_mul(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    return filling(y, sgl("gelu_tanh_and_mul"), y, kw["x"])


@peer("silu_and_mul_group_quant", "sglang.two")
def sgl_silu_and_mul_then_group_quant(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    q, scale, quantise = sgl_group(kw, y)
    return in_turn((q, scale), sgl_silu_into(kw, y), quantise)


def sgl_silu_into(kw: Kwargs, y: torch.Tensor) -> Call:
    no_limit(kw)
    return filling(None, sgl("silu_and_mul"), y, kw["x"])


@peer("silu_and_mul_dynamic_quant", "sglang.two")
def sgl_silu_and_mul_then_token_quant(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    q, scale, quantise = sgl_token(kw, y)
    return in_turn((q, scale), sgl_silu_into(kw, y), quantise)


def sgl_group(kw: Kwargs, x: torch.Tensor) -> Quantised:
    no_ue8m0(kw)
    dtype = output_dtype(kw)
    q = like(x, dtype)
    scale = group_scale(kw, q)
    args = (x, q, scale, group_size(kw), GROUP_AMAX_FLOOR, *dtype_range(dtype), False, False, None)
    return q, scale, filling(None, sgl("sgl_per_token_group_quant_8bit_v2"), *args)


def sgl_token(kw: Kwargs, x: torch.Tensor) -> Quantised:
    need(kw.get("scale_upper_bound") is None, "no scale bound")
    q, scale = like(x, fp8_only(kw)), token_scale(x)
    return q, scale, filling(None, sgl("sgl_per_token_quant_fp8"), x, q, scale)


@peer("group_quant", "sglang")
def sgl_group_quant(kw: Kwargs) -> Call:
    return quantised(kw, sgl_group)


@peer("per_token_quant", "sglang")
def sgl_per_token_quant(kw: Kwargs) -> Call:
    return quantised(kw, sgl_token)
