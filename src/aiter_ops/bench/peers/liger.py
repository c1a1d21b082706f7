"""Liger's Triton kernels."""

from __future__ import annotations

import importlib
from typing import Any

from aiter_ops.core.op import own_copy

from .common import any_weight, halves, layer_norm_bias, need, no_limit
from .registry import Call, Kwargs, peer


def liger(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), name)


@peer("rms_norm", "liger")
def liger_rms_norm(kw: Kwargs) -> Call:
    forward = liger("rms_norm", "rms_norm_forward")
    args = (kw["x"], kw.get("weight"), kw["eps"], *liger_casting(kw), None)
    return lambda: forward(*args)[0]


def liger_casting(kw: Kwargs) -> tuple[float, str]:
    offset = float(kw.get("weight_offset") or 0.0)
    return offset, "gemma" if offset else "llama"


@peer("add_rms_norm", "liger")
def liger_add_rms_norm(kw: Kwargs) -> Call:
    forward = liger("fused_add_rms_norm", "fused_add_rms_norm_forward")
    args = (kw["x"], kw["residual"], any_weight(kw), kw["eps"], *liger_casting(kw))
    return lambda: forward(*args)[:2]


@peer("layer_norm", "liger")
def liger_layer_norm(kw: Kwargs) -> Call:
    forward = liger("layer_norm", "layer_norm_forward")
    args = (kw["x"], any_weight(kw), layer_norm_bias(kw), kw["eps"])
    return lambda: forward(*args)[0]


@peer("silu_and_mul", "liger")
def liger_silu_and_mul(kw: Kwargs) -> Call:
    no_limit(kw)
    forward, x = liger("swiglu", "swiglu_fused_gate_up_forward"), kw["x"]
    return lambda: forward(x)[1]


@peer("gelu_tanh_and_mul", "liger")
def liger_gelu_tanh_and_mul(kw: Kwargs) -> Call:
    forward = liger("geglu", "geglu_forward")
    gate, up = (half.contiguous() for half in halves(kw["x"]))
    return lambda: forward(gate, up)[2]


@peer("apply_rope", "liger")
def liger_rope(kw: Kwargs) -> Call:
    """In place on copies."""
    need(kw.get("is_neox", True), "halves only")
    forward, q, k = liger("rope", "rope_forward"), own_copy(kw["q"]), own_copy(kw["k"])
    return lambda: forward(q, k, kw["cos"], kw["sin"])[:2]
