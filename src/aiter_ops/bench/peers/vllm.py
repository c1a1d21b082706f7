"""vLLM's binary ops: ``torch.ops._C``."""

from __future__ import annotations

from typing import Any

import torch

from .common import (
    GROUP_AMAX_FLOOR,
    Quantised,
    dtype_range,
    dual_norm,
    filling,
    fp8_only,
    group_scale,
    group_size,
    half_width,
    in_turn,
    layout,
    like,
    need,
    no_limit,
    no_ue8m0,
    output_dtype,
    plain_weight,
    quantised,
    scale_bound,
    token_scale,
)
from .registry import Call, Kwargs, peer


def vllm(name: str) -> Any:
    return getattr(torch.ops._C, name).default


@peer("rms_norm", "vllm")
def vllm_rms_norm(kw: Kwargs) -> Call:
    y = like(kw["x"])
    return filling(y, vllm("rms_norm"), y, kw["x"], plain_weight(kw), kw["eps"])


@peer("add_rms_norm", "vllm")
def vllm_add_rms_norm(kw: Kwargs) -> Call:
    y, h = kw["x"].clone(), kw["residual"].clone()
    return filling((y, h), vllm("fused_add_rms_norm"), y, h, plain_weight(kw), kw["eps"])


@peer("rms_norm_dynamic_quant", "vllm")
def vllm_rms_norm_dynamic_quant(kw: Kwargs) -> Call:
    x, q, scale = kw["x"], like(kw["x"], output_dtype(kw)), token_scale(kw["x"])
    op = vllm("rms_norm_dynamic_per_token_quant")
    return filling((q, scale), op, q, x, plain_weight(kw), scale, kw["eps"], None, None)


@peer("add_rms_norm_dynamic_quant", "vllm")
def vllm_add_rms_norm_dynamic_quant(kw: Kwargs) -> Call:
    x, q, scale = kw["x"], like(kw["x"], output_dtype(kw)), token_scale(kw["x"])
    h = kw["residual"].clone()
    op = vllm("rms_norm_dynamic_per_token_quant")
    return filling((q, scale, h), op, q, x, plain_weight(kw), scale, kw["eps"], None, h)


@peer("rms_norm_static_quant", "vllm")
def vllm_rms_norm_static_quant(kw: Kwargs) -> Call:
    q = like(kw["x"], fp8_only(kw))
    return filling(q, vllm("rms_norm_static_fp8_quant"), q, kw["x"], plain_weight(kw), kw["scale"], kw["eps"])


@peer("add_rms_norm_static_quant", "vllm")
def vllm_add_rms_norm_static_quant(kw: Kwargs) -> Call:
    x, q, h = kw["x"], like(kw["x"], fp8_only(kw)), kw["residual"].clone()
    op = vllm("fused_add_rms_norm_static_fp8_quant")
    return filling((q, h), op, q, x, h, plain_weight(kw), kw["scale"], kw["eps"])


def vllm_norm_group(kw: Kwargs, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, Call]:
    no_ue8m0(kw)
    q = like(kw["x"], output_dtype(kw))
    scale = group_scale(kw, q)
    op, columns = vllm("rms_norm_per_block_quant"), layout(kw) != "row"
    args = (q, kw["x"], plain_weight(kw), scale, kw["eps"], None, residual, group_size(kw), columns)
    return q, scale, filling(None, op, *args)


@peer("rms_norm_group_quant", "vllm")
def vllm_rms_norm_group_quant(kw: Kwargs) -> Call:
    q, scale, step = vllm_norm_group(kw, None)
    return in_turn((q, scale), step)


@peer("add_rms_norm_group_quant", "vllm")
def vllm_add_rms_norm_group_quant(kw: Kwargs) -> Call:
    h = kw["residual"].clone()
    q, scale, step = vllm_norm_group(kw, h)
    return in_turn((q, scale, h), step)


@peer("dual_rms_norm", "vllm.two")
def vllm_dual_rms_norm(kw: Kwargs) -> Call:
    return dual_norm(kw, vllm_rms_norm)


@peer("silu_and_mul", "vllm")
def vllm_silu_and_mul(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    if kw.get("limit"):
        return filling(y, vllm("silu_and_mul_with_clamp"), y, kw["x"], float(kw["limit"]))
    return filling(y, vllm("silu_and_mul"), y, kw["x"])


@peer("gelu_and_mul", "vllm")
def vllm_gelu_and_mul(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    return filling(y, vllm("gelu_and_mul"), y, kw["x"])


@peer("gelu_tanh_and_mul", "vllm")
def vllm_gelu_tanh_and_mul(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    return filling(y, vllm("gelu_tanh_and_mul"), y, kw["x"])


@peer("swiglu_oai_and_mul", "vllm")
def vllm_swiglu_oai_and_mul(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    return filling(y, vllm("swigluoai_and_mul"), y, kw["x"], kw.get("alpha", 1.702), kw.get("limit", 7.0))


@peer("silu_and_mul_group_quant", "vllm_main")
def vllm_silu_and_mul_group_quant(kw: Kwargs) -> Call:
    no_limit(kw)
    no_ue8m0(kw)
    need(layout(kw) in ("row", "col"), "no padded columns")
    q = half_width(kw["x"], output_dtype(kw))
    scale = group_scale(kw, q)
    op = vllm("silu_and_mul_per_block_quant")
    return filling((q, scale), op, q, kw["x"], scale, group_size(kw), None, layout(kw) == "col")


@peer("silu_and_mul_group_quant", "vllm.two")
def vllm_silu_and_mul_then_group_quant(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    q, scale, quantise = vllm_group(kw, y)
    return in_turn((q, scale), vllm_silu_into(kw, y), quantise)


def vllm_silu_into(kw: Kwargs, y: torch.Tensor) -> Call:
    no_limit(kw)
    return filling(None, vllm("silu_and_mul"), y, kw["x"])


@peer("silu_and_mul_dynamic_quant", "vllm.two")
def vllm_silu_and_mul_then_token_quant(kw: Kwargs) -> Call:
    y = half_width(kw["x"])
    q, scale, quantise = vllm_token(kw, y)
    return in_turn((q, scale), vllm_silu_into(kw, y), quantise)


def vllm_group(kw: Kwargs, x: torch.Tensor) -> Quantised:
    dtype = output_dtype(kw)
    q = like(x, dtype)
    scale = group_scale(kw, q)
    args = (x, q, scale, group_size(kw), GROUP_AMAX_FLOOR, *dtype_range(dtype))
    if dtype == torch.int8:
        no_ue8m0(kw)
        need(layout(kw) == "row", "row-major scales only for int8")
        return q, scale, filling(None, vllm("per_token_group_quant_int8"), *args)
    flags = (bool(kw.get("ue8m0")), layout(kw) != "row", layout(kw) == "col_tma4")
    return q, scale, filling(None, vllm("per_token_group_fp8_quant"), *args, *flags)


def vllm_token(kw: Kwargs, x: torch.Tensor) -> Quantised:
    dtype = output_dtype(kw)
    q, scale = like(x, dtype), token_scale(x)
    if dtype == torch.int8:
        need(kw.get("scale_upper_bound") is None, "no scale bound for int8")
        return q, scale, filling(None, vllm("dynamic_scaled_int8_quant"), q, x, scale, None)
    return q, scale, filling(None, vllm("dynamic_per_token_scaled_fp8_quant"), q, x, scale, scale_bound(kw))


@peer("group_quant", "vllm")
def vllm_group_quant(kw: Kwargs) -> Call:
    return quantised(kw, vllm_group)


@peer("per_token_quant", "vllm")
def vllm_per_token_quant(kw: Kwargs) -> Call:
    return quantised(kw, vllm_token)


@peer("per_tensor_quant", "vllm")
def vllm_per_tensor_quant(kw: Kwargs) -> Call:
    x, q = kw["x"], like(kw["x"], fp8_only(kw))
    scale = torch.empty(1, dtype=torch.float32, device=x.device)
    return filling((q, scale), vllm("dynamic_scaled_fp8_quant"), q, x, scale)


@peer("per_tensor_quant_static", "vllm")
def vllm_per_tensor_quant_static(kw: Kwargs) -> Call:
    q = like(kw["x"], output_dtype(kw))
    op = vllm("static_scaled_int8_quant" if q.dtype == torch.int8 else "static_scaled_fp8_quant")
    return filling(q, op, q, kw["x"], kw["scale"], None)
