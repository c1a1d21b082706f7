"""vLLM's CUTLASS products and its kernels for DeepSeek-V3's narrow ones."""

from __future__ import annotations

from typing import Any

import torch

from .common import filling, need
from .registry import Call, Kwargs, peer
from .torch_gemm import by_column, no_bias, plain_layout, product_dtype
from .vllm import vllm


def result(kw: Kwargs) -> torch.Tensor:
    shape = (kw["a"].shape[0], kw["b"].shape[0])
    return torch.empty(shape, dtype=product_dtype(kw), device=kw["a"].device)


def scaled_mm(kw: Kwargs, a_scale: torch.Tensor, b_scale: torch.Tensor) -> Call:
    plain_layout(kw)
    y = result(kw)
    return filling(y, vllm("cutlass_scaled_mm"), y, kw["a"], kw["b"].t(), a_scale, b_scale, kw.get("bias"))


@peer("gemm_a8w8", "vllm")
def vllm_scaled_mm(kw: Kwargs) -> Call:
    return scaled_mm(kw, kw["a_scale"].reshape(-1, 1), kw["b_scale"].reshape(-1, 1))


@peer("gemm_a8w8_blockscale", "vllm")
def vllm_scaled_mm_blocks(kw: Kwargs) -> Call:
    no_bias(kw)
    return scaled_mm(kw, by_column(kw["a_scale"]), kw["b_scale"].t())


def deepseek_latents(kw: Kwargs, op: Any) -> Call:
    need(kw["b"].shape == (2112, 7168) and kw["a"].shape[0] <= 16, "7168 to 2112 columns, up to 16 rows, only")
    no_bias(kw)
    y = result(kw)
    return filling(y, op, y, kw["a"], kw["b"].t())


def deepseek_router(kw: Kwargs, op: Any) -> Call:
    need(kw["b"].shape == (256, 7168) and kw["a"].shape[0] <= 16, "7168 to 256 columns, up to 16 rows, only")
    no_bias(kw)
    y = result(kw)
    return filling(y, op, y, kw["a"], kw["b"])


@peer("gemm_a16w16", "vllm")
def vllm_latents(kw: Kwargs) -> Call:
    return deepseek_latents(kw, vllm("dsv3_fused_a_gemm"))


@peer("gemm_a16w16", "vllm_moe")
def vllm_router(kw: Kwargs) -> Call:
    return deepseek_router(kw, torch.ops._moe_C.dsv3_router_gemm.default)
