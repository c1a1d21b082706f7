"""DeepGEMM: FP8 products with block scales, compiled by nvcc when first called."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from .common import filling, need
from .registry import Call, Kwargs, need_package, peer
from .torch_gemm import no_bias, plain_layout


def load_deep_gemm() -> None:
    need_package("deep_gemm")
    importlib.import_module("deep_gemm")


def deep(name: str) -> Any:
    return getattr(importlib.import_module("deep_gemm"), name)


@peer("gemm_a8w8_blockscale", "deep_gemm")
def deep_block_gemm(kw: Kwargs) -> Call:
    """The scales of a are laid out as its kernels read them, once, beforehand."""
    no_bias(kw)
    plain_layout(kw)
    need(kw.get("out_dtype") in (None, torch.bfloat16), "bf16 only")
    a, b = kw["a"], kw["b"]
    y = torch.empty(a.shape[0], b.shape[0], dtype=torch.bfloat16, device=a.device)
    left = a, deep("get_mn_major_tma_aligned_tensor")(kw["a_scale"].contiguous())
    return filling(y, functools.partial(deep("fp8_gemm_nt"), left, (b, kw["b_scale"]), y))


@peer("gemm_a16w16", "deep_gemm")
def deep_gemm_bf16(kw: Kwargs) -> Call:
    no_bias(kw)
    need(kw["a"].dtype == torch.bfloat16 and kw.get("out_dtype") in (None, torch.bfloat16), "bf16 only")
    y = torch.empty(kw["a"].shape[0], kw["b"].shape[0], dtype=torch.bfloat16, device=kw["a"].device)
    return filling(y, deep("bf16_gemm_nt"), kw["a"], kw["b"], y)
