"""FlagGems' Triton kernels."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from .common import (
    any_weight,
    filling,
    fp8_only,
    group_size,
    half_width,
    halves,
    layer_norm_bias,
    layout,
    need,
    no_limit,
    plain_weight,
)
from .registry import Call, Kwargs, peer


def flag_gems(name: str) -> Any:
    return getattr(importlib.import_module("flag_gems"), name)


@peer("rms_norm", "flag_gems")
def flag_gems_rms_norm(kw: Kwargs) -> Call:
    forward, x, weight, eps = flag_gems("rms_norm_forward"), kw["x"], plain_weight(kw), kw["eps"]
    return lambda: forward(x, (x.shape[-1],), weight, eps)[0]


@peer("add_rms_norm", "flag_gems")
def flag_gems_add_rms_norm(kw: Kwargs) -> Call:
    y, h = kw["x"].clone(), kw["residual"].clone()
    op = flag_gems("fused_add_rms_norm")
    return functools.partial(op, y, h, (y.shape[-1],), plain_weight(kw), kw["eps"])


@peer("layer_norm", "flag_gems")
def flag_gems_layer_norm(kw: Kwargs) -> Call:
    op, args = flag_gems("layer_norm"), (kw["x"], (kw["x"].shape[-1],), kw.get("weight"), kw.get("bias"), kw["eps"])
    return lambda: op(*args)[0]


@peer("add_layer_norm", "flag_gems")
def flag_gems_add_layer_norm(kw: Kwargs) -> Call:
    op = flag_gems("skip_layer_norm")
    args = (kw["x"], kw["residual"], (kw["x"].shape[-1],), any_weight(kw), layer_norm_bias(kw), kw["eps"])
    return lambda: (op(*args), None)


@peer("silu_and_mul", "flag_gems")
def flag_gems_silu_and_mul(kw: Kwargs) -> Call:
    no_limit(kw)
    y = half_width(kw["x"])
    return filling(y, flag_gems("silu_and_mul_out"), *halves(kw["x"]), y)


@peer("gelu_and_mul", "flag_gems")
def flag_gems_gelu_and_mul(kw: Kwargs) -> Call:
    return functools.partial(flag_gems("gelu_and_mul"), *halves(kw["x"]), "none")


@peer("gelu_tanh_and_mul", "flag_gems")
def flag_gems_gelu_tanh_and_mul(kw: Kwargs) -> Call:
    return functools.partial(flag_gems("gelu_and_mul"), *halves(kw["x"]), "tanh")


@peer("group_quant", "flag_gems")
def flag_gems_group_quant(kw: Kwargs) -> Call:
    need(layout(kw) in ("row", "col"), "no padded columns")
    op = flag_gems("per_token_group_quant_fp8")
    options = {"dtype": fp8_only(kw), "column_major_scales": layout(kw) == "col", "scale_ue8m0": bool(kw.get("ue8m0"))}
    return functools.partial(op, kw["x"], group_size(kw), **options)


@peer("rotary_embedding", "flag_gems")
def flag_gems_rotary(kw: Kwargs) -> Call:
    need(kw.get("offsets") is None and not kw.get("nope_first"), "called without offsets only")
    op, (cos, sin) = flag_gems("apply_rotary_pos_emb"), kw["cos_sin_cache"].chunk(2, -1)
    q, k = (kw[name].view(len(kw[name]), -1, kw["head_size"]) for name in "qk")
    return functools.partial(op, q, k, cos, sin, kw["positions"], not kw["is_neox"], True)


@peer("reshape_and_cache", "flag_gems")
def flag_gems_reshape_and_cache(kw: Kwargs) -> Call:
    need(kw["k_cache"].dtype == kw["k"].dtype, "caches of the keys' dtype only")
    args = (kw["k"], kw["v"], kw["k_cache"], kw["v_cache"], kw["slot_mapping"], "auto", None, None)
    return functools.partial(flag_gems("reshape_and_cache_flash"), *args)
