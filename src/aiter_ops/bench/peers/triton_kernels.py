"""The triton_kernels package of the Triton project: grouped products, routing."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from .common import need
from .experts import plain_experts
from .registry import LOADED, Call, Kwargs, need_package, peer
from .vllm_routing import no_padding


def load_triton_kernels() -> None:
    need_package("triton_kernels")
    for module in ("matmul_ogs", "routing", "topk"):
        importlib.import_module(f"triton_kernels.{module}")


def of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"triton_kernels.{module}"), name)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """The package has the clamped SwiGLU only, so the plain one is another library's: one kernel where one is here."""
    y = torch.empty(x.shape[0], x.shape[1] // 2, dtype=x.dtype, device=x.device)
    for library, name in (("vllm", "_C"), ("sglang", "sgl_kernel")):
        if LOADED.get(library, "") is None:
            getattr(torch.ops, name).silu_and_mul.default(y, x)
            return y
    gate, up = x.chunk(2, dim=-1)
    return torch.mul(torch.nn.functional.silu(gate), up, out=y)


@peer("fused_moe", "triton_kernels")
def triton_kernels_fused_moe(kw: Kwargs) -> Call:
    """Sorting from given ids and weights (as the softmax of their logarithms), two grouped products."""
    plain_experts(kw)
    need(kw.get("quant", "none") == "none", "16-bit weights only")
    x, ids, k = kw["x"], kw["ids"].to(torch.int16), kw["ids"].shape[1]
    logits = torch.full((x.shape[0], kw["w1"].shape[0]), -1e30, device=x.device)
    logits.scatter_(1, kw["ids"].long(), kw["weights"].log())
    w1, w2 = kw["w1"].transpose(1, 2), kw["w2"].transpose(1, 2)
    routing, matmul = of("routing", "routing"), of("matmul_ogs", "matmul_ogs")

    def call() -> torch.Tensor:
        data, gather, scatter = routing(logits, k, expt_indx=ids)
        both = matmul(x, w1, None, data, gather_indx=gather)
        return matmul(silu_and_mul(both), w2, None, data, scatter_indx=scatter, gammas=data.gate_scal)

    return call


@peer("topk_softmax", "triton_kernels")
def triton_kernels_topk(kw: Kwargs) -> Call:
    no_padding(kw)
    need(kw["renormalize"] and kw.get("bias") is None, "renormalised weights, no bias, only")
    op, logits, k = of("topk", "topk"), kw["logits"], kw["k"]
    need(k & (k - 1) == 0, "k a power of two only")
    return lambda: op(logits, k)[:2]
