"""AITER's own Triton kernels, run on this GPU although their tile choices are made for AMD's."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from .common import (
    any_weight,
    filling,
    fp8_only,
    group_size,
    half_width,
    in_turn,
    layer_norm_bias,
    layout,
    like,
    need,
    no_limit,
    no_ue8m0,
    output_dtype,
    plain_weight,
    token_scale,
)
from .registry import Call, Kwargs, peer


def aiter(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"aiter.ops.triton.{module}"), name)


@peer("rms_norm", "aiter_triton")
def aiter_rms_norm(kw: Kwargs) -> Call:
    return functools.partial(aiter("normalization.rmsnorm", "rms_norm"), kw["x"], plain_weight(kw), kw["eps"])


@peer("rms_norm", "aiter_triton.rows")
def aiter_rms_norm_rows(kw: Kwargs) -> Call:
    op = aiter("normalization.fused_add_rmsnorm_pad", "fused_add_rmsnorm_pad")
    return functools.partial(op, kw["x"], plain_weight(kw), kw["eps"])


@peer("add_rms_norm", "aiter_triton")
def aiter_add_rms_norm(kw: Kwargs) -> Call:
    x, y, h = kw["x"], like(kw["x"]), like(kw["x"])
    op = aiter("normalization.rmsnorm", "rmsnorm2d_fwd_with_add")
    return filling((y, h), op, y, x, kw["residual"], h, plain_weight(kw), kw["eps"])


@peer("add_rms_norm", "aiter_triton.rows")
@peer("add_rms_norm_pad", "aiter_triton")
def aiter_add_rms_norm_pad(kw: Kwargs) -> Call:
    op = aiter("normalization.fused_add_rmsnorm_pad", "fused_add_rmsnorm_pad")
    return functools.partial(op, kw["x"], plain_weight(kw), kw["eps"], kw["residual"], kw.get("pad_to") or 0)


@peer("rms_norm_dynamic_quant", "aiter_triton")
def aiter_rms_norm_dynamic_quant(kw: Kwargs) -> Call:
    x, q, scale = kw["x"], like(kw["x"], output_dtype(kw)), token_scale(kw["x"])
    op = aiter("normalization.rmsnorm", "rmsnorm2d_fwd_with_dynamicquant")
    return filling((q, scale), op, q, x, scale, plain_weight(kw), kw["eps"])


@peer("add_rms_norm_dynamic_quant", "aiter_triton")
def aiter_add_rms_norm_dynamic_quant(kw: Kwargs) -> Call:
    x, q, scale, h = kw["x"], like(kw["x"], output_dtype(kw)), token_scale(kw["x"]), like(kw["x"])
    op = aiter("normalization.rmsnorm", "rmsnorm2d_fwd_with_add_dynamicquant")
    return filling((q, scale, h), op, q, x, kw["residual"], h, scale, plain_weight(kw), kw["eps"])


@peer("rms_norm_static_quant", "aiter_triton")
def aiter_rms_norm_static_quant(kw: Kwargs) -> Call:
    op = aiter("quant.fused_fp8_quant", "fused_rms_fp8_per_tensor_static_quant")
    args = (kw["x"], plain_weight(kw), kw["eps"], kw["scale"])
    dtype = output_dtype(kw)
    return lambda: op(*args, dtype_quant=dtype)[0]


@peer("add_rms_norm_static_quant", "aiter_triton")
def aiter_add_rms_norm_static_quant(kw: Kwargs) -> Call:
    op = aiter("quant.fused_fp8_quant", "fused_rms_fp8_per_tensor_static_quant")
    args = (kw["x"], plain_weight(kw), kw["eps"], kw["scale"])
    dtype, residual = output_dtype(kw), kw["residual"]

    def call() -> Any:
        q, _, _, h = op(*args, dtype_quant=dtype, res1=residual)
        return q, h

    return call


def aiter_norm_group(kw: Kwargs, residual: torch.Tensor | None) -> Callable[[], tuple[Any, Any, Any]]:
    no_ue8m0(kw)
    need(layout(kw) in ("row", "col"), "no padded columns")
    op = aiter("quant.fused_fp8_quant", "fused_rms_fp8_group_quant")
    args = (kw["x"], plain_weight(kw), kw["eps"])
    columns = layout(kw) == "col"
    options = {"group_size": group_size(kw), "dtype_quant": output_dtype(kw), "res1": residual}
    options |= {"transpose_scale": columns, "is_x_scale_strided": columns}

    def call() -> tuple[Any, Any, Any]:
        (q, scale), _, _, h = op(*args, **options)
        return q, scale, h

    return call


@peer("rms_norm_group_quant", "aiter_triton")
def aiter_rms_norm_group_quant(kw: Kwargs) -> Call:
    call = aiter_norm_group(kw, None)
    return lambda: call()[:2]


@peer("add_rms_norm_group_quant", "aiter_triton")
def aiter_add_rms_norm_group_quant(kw: Kwargs) -> Call:
    return aiter_norm_group(kw, kw["residual"])


@peer("gated_rms_norm_group_quant", "aiter_triton")
def aiter_gated_rms_norm_group_quant(kw: Kwargs) -> Call:
    need(layout(kw) == "row", "row-major scales only")
    op = aiter("quant.fused_fp8_quant", "fused_rms_gated_fp8_group_quant")
    options = {
        "norm_before_gate": kw.get("norm_before_gate", True),
        "use_ue8m0": bool(kw.get("ue8m0")),
        "activation": kw.get("activation") or "silu",
        "out_dtype": fp8_only(kw),
        "group_size": group_size(kw),
    }
    return functools.partial(op, kw["x"], plain_weight(kw), kw.get("bias"), kw["z"], kw["eps"], **options)


@peer("layer_norm", "aiter_triton")
def aiter_layer_norm(kw: Kwargs) -> Call:
    op = aiter("normalization.norm", "layer_norm")
    return functools.partial(op, kw["x"], any_weight(kw), layer_norm_bias(kw), kw["eps"])


@peer("add_layer_norm", "aiter_triton")
def aiter_add_layer_norm(kw: Kwargs) -> Call:
    x, y, h = kw["x"], like(kw["x"]), like(kw["x"])
    op = aiter("normalization.norm", "layernorm2d_fwd_with_add")
    return filling((y, h), op, y, x, kw["residual"], h, any_weight(kw), layer_norm_bias(kw), kw["eps"])


@peer("silu_and_mul", "aiter_triton")
def aiter_silu_and_mul(kw: Kwargs) -> Call:
    no_limit(kw)
    y = half_width(kw["x"])
    return filling(y, aiter("activation", "fused_silu_mul"), kw["x"], y)


@peer("silu_and_mul_group_quant", "aiter_triton")
def aiter_silu_and_mul_group_quant(kw: Kwargs) -> Call:
    aiter_silu_group_limits(kw)
    op = aiter("activation", "act_mul_and_fp8_group_quant")
    return functools.partial(op, kw["x"], "silu", group_size(kw), output_dtype(kw))


@peer("silu_and_mul_group_quant", "aiter_triton.rows")
def aiter_silu_and_mul_group_quant_rows(kw: Kwargs) -> Call:
    aiter_silu_group_limits(kw)
    op = aiter("quant.fused_fp8_quant", "fused_reduce_act_mul_fp8_group_quant")
    options = {"group_size": group_size(kw), "dtype_quant": output_dtype(kw)}
    return lambda: op(kw["x"], "silu", **options)[0]


def aiter_silu_group_limits(kw: Kwargs) -> None:
    no_limit(kw)
    no_ue8m0(kw)
    need(layout(kw) == "row", "row-major scales only")


@peer("group_quant", "aiter_triton")
def aiter_group_quant(kw: Kwargs) -> Call:
    no_ue8m0(kw)
    need(layout(kw) in ("row", "col"), "no padded columns")
    op = aiter("quant.fused_fp8_quant", "fused_flatten_fp8_group_quant")
    return functools.partial(op, kw["x"].unsqueeze(1), group_size(kw), output_dtype(kw), layout(kw) == "col")


@peer("per_token_quant", "aiter_triton")
def aiter_per_token_quant(kw: Kwargs) -> Call:
    need(kw.get("scale_upper_bound") is None, "no scale bound")
    q, scale = like(kw["x"], output_dtype(kw)), token_scale(kw["x"])
    return filling((q, scale), aiter("quant.quant", "dynamic_per_token_quant_fp8_i8"), q, kw["x"], scale)


@peer("per_tensor_quant", "aiter_triton")
def aiter_per_tensor_quant(kw: Kwargs) -> Call:
    x, q = kw["x"], like(kw["x"], output_dtype(kw))
    scale = torch.empty(1, dtype=torch.float32, device=x.device)
    quantise = filling(None, aiter("quant.quant", "dynamic_per_tensor_quant_fp8_i8"), q, x, scale)
    return in_turn((q, scale), scale.zero_, quantise)


@peer("per_tensor_quant_static", "aiter_triton")
def aiter_per_tensor_quant_static(kw: Kwargs) -> Call:
    q = like(kw["x"], output_dtype(kw))
    return filling(q, aiter("quant.quant", "static_per_tensor_quant_fp8_i8"), q, kw["x"], kw["scale"])


@peer("mxfp4_quant", "aiter_triton")
def aiter_mxfp4_quant(kw: Kwargs) -> Call:
    need(kw.get("rounding", "even") == "even", "rounds scales to even only")
    return functools.partial(aiter("quant.quant", "dynamic_mxfp4_quant"), kw["x"])


@peer("mxfp8_quant", "aiter_triton")
def aiter_mxfp8_quant(kw: Kwargs) -> Call:
    x = kw["x"]
    scale = torch.empty(x.shape[0], x.shape[1] // 32, dtype=torch.uint8, device=x.device)
    return functools.partial(aiter("quant.quant", "dynamic_mxfp8_quant"), x, scale, output_dtype(kw))
