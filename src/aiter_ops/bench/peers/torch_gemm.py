"""torch's own products: cuBLAS and cuBLASLt."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .common import need
from .registry import Call, Kwargs, peer


def no_bias(kw: Kwargs) -> None:
    need(kw.get("bias") is None, "called without a bias only")


def plain_layout(kw: Kwargs) -> None:
    need(kw.get("layout", "plain") == "plain", "plain weights only")


def product_dtype(kw: Kwargs) -> torch.dtype:
    return kw.get("out_dtype") or torch.bfloat16


def by_column(scale: torch.Tensor) -> torch.Tensor:
    """The same [M, G] numbers with the rows of a column side by side."""
    return scale.t().contiguous().t()


@peer("gemm_a16w16", "torch.mm")
def torch_mm(kw: Kwargs) -> Call:
    no_bias(kw)
    need(kw.get("out_dtype") in (None, kw["a"].dtype), "gives the dtype of its inputs only")
    return functools.partial(torch.mm, kw["a"], kw["b"].t())


def scaled_mm(kw: Kwargs, a_scale: torch.Tensor, b_scale: torch.Tensor, fast: bool) -> Call:
    no_bias(kw)
    plain_layout(kw)
    options: dict[str, Any] = {"out_dtype": product_dtype(kw), "use_fast_accum": fast}
    return functools.partial(torch._scaled_mm, kw["a"], kw["b"].t(), a_scale, b_scale, **options)


def scaled_by_row(kw: Kwargs, fast: bool) -> Call:
    need(kw["a"].dtype.is_floating_point, "FP8 only")
    return scaled_mm(kw, kw["a_scale"].reshape(-1, 1), kw["b_scale"].reshape(1, -1), fast)


@peer("gemm_a8w8", "torch.scaled_mm")
def torch_scaled_mm(kw: Kwargs) -> Call:
    return scaled_by_row(kw, False)


@peer("gemm_a8w8", "torch.scaled_mm.fast")
def torch_scaled_mm_fast(kw: Kwargs) -> Call:
    return scaled_by_row(kw, True)


@peer("gemm_a8w8_blockscale", "torch.scaled_mm")
def torch_scaled_mm_blocks(kw: Kwargs) -> Call:
    """cuBLASLt's 1×128 and 128×128 scales: the first by column, the second as stored."""
    return scaled_mm(kw, by_column(kw["a_scale"]), kw["b_scale"].t(), False)


@peer("bmm_a8w8_group_prequant", "torch.bmm")
def torch_bmm_of_widened(kw: Kwargs) -> Call:
    """16-bit weights of the same values; nothing is quantised inside."""
    widened = (kw["w"].float() * kw["w_scale"].reshape(())).to(kw["x"].dtype)
    return torch_bmm({**kw, "w": widened})


@peer("bmm_a16w16", "torch.bmm")
def torch_bmm(kw: Kwargs) -> Call:
    no_bias(kw)
    x, w = kw["x"], kw["w"].transpose(1, 2)
    if not kw.get("transpose_bm"):
        return functools.partial(torch.bmm, x, w)
    y = torch.empty(x.shape[1], x.shape[0], w.shape[2], dtype=x.dtype, device=x.device)

    def call() -> torch.Tensor:
        torch.bmm(x, w, out=y.transpose(0, 1))
        return y

    return call
