"""sglang-kernel's CUTLASS products and its kernels for DeepSeek-V3's narrow ones."""

from __future__ import annotations

import functools

import torch

from .registry import Call, Kwargs, peer
from .sglang import sgl
from .torch_gemm import by_column, no_bias, plain_layout, product_dtype
from .vllm_gemm import deepseek_latents, deepseek_router


@peer("gemm_a8w8", "sglang")
def sgl_scaled_mm(kw: Kwargs) -> Call:
    plain_layout(kw)
    name = "int8_scaled_mm" if kw["a"].dtype == torch.int8 else "fp8_scaled_mm"
    scales = kw["a_scale"].reshape(-1, 1), kw["b_scale"].reshape(-1, 1)
    return functools.partial(sgl(name), kw["a"], kw["b"].t(), *scales, product_dtype(kw), kw.get("bias"))


@peer("gemm_a8w8_blockscale", "sglang")
def sgl_scaled_mm_blocks(kw: Kwargs) -> Call:
    no_bias(kw)
    plain_layout(kw)
    scales = by_column(kw["a_scale"]), kw["b_scale"].t()
    return functools.partial(sgl("fp8_blockwise_scaled_mm"), kw["a"], kw["b"].t(), *scales, product_dtype(kw))


@peer("gemm_a16w16", "sglang")
def sgl_narrow(kw: Kwargs) -> Call:
    if kw["b"].shape[0] == 256:
        return deepseek_router(kw, sgl("dsv3_router_gemm"))
    return deepseek_latents(kw, sgl("dsv3_fused_a_gemm"))
