"""Two norms in one launch: aiter/ops/fused_qk_rmsnorm_group_quant.py (csrc/kernels/fused_qk_rmsnorm_group_quant.cu)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .machine import HALF, Abort, Fault, Machine, Unsupported, check, function, row_strided, shape_of
from .norm import WIDEST, grouped, normed, words


def _pair(
    m: Machine, q: Tensor, q_weight: Tensor, k: Tensor | None, k_weight: Tensor | None, k_out: Tensor | None
) -> None:
    check(Abort, q.dtype in HALF and q.dim() == 2, "q is a 2D tensor of 16 bits")
    for name, x, weight in (("q", q, q_weight), ("k", k, k_weight)):
        if x is None:
            continue
        check(Abort, weight is not None and weight.dtype == x.dtype == q.dtype, f"{name}_weight has another type")
        shape_of(Abort, f"{name}_weight", weight, x.shape[1])
        row_strided(Abort, x=x, weight=weight)
        check(Abort, x.stride(0) >= x.shape[1] and len(x) == len(q), f"rows of {name}")
        check(Abort, x.shape[1] <= WIDEST, f"not support n: {x.shape[1]}")
        check(
            Fault,
            x.stride(0) * x.element_size() % 16 == 0 == x.data_ptr() % 16 or x.is_contiguous(),
            "words of 16 bytes",
        )
    if k is not None:
        check(Abort, k_out is not None and k_out.dtype == q.dtype and k_out.shape == k.shape, "k_out")
        words(k_out, "k_out")


def _second_norm(k_out: Tensor | None, k: Tensor | None, weight: Tensor | None, eps: float | None, gemma: bool) -> None:
    if k is not None and k_out is not None:
        check(Abort, eps is not None, "k_epsilon is required")
        k_out.copy_(normed(k, weight, eps or 0.0, gemma))


@function
def fused_qk_rmsnorm_group_quant(
    m: Machine,
    q_out_quantized: Tensor | None = None,
    q_out_scale: Tensor | None = None,
    q: Tensor | None = None,
    q_weight: Tensor | None = None,
    q_epsilon: float = 1e-6,
    q_out_unquantized: Tensor | None = None,
    k_out: Tensor | None = None,
    q_res_out: Tensor | None = None,
    k: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_epsilon: float | None = None,
    q_residual: Tensor | None = None,
    group_size: int = 128,
    transpose_scale: bool = False,
    gemma_norm: bool = False,
) -> None:
    check(Abort, q is not None and q_weight is not None, "q is required")
    check(Unsupported, group_size > 0, "requires group_size > 0")
    _pair(m, q, q_weight, k, k_weight, k_out)
    total = q.float() if q_residual is None else q.float() + q_residual.float()
    y = normed(total, q_weight, q_epsilon, gemma_norm)
    if q_residual is not None:
        check(Abort, q_res_out is not None, "q_res_out")
        q_res_out.copy_(total)
    if q_out_unquantized is not None:
        q_out_unquantized.copy_(y)
    if q_out_scale is not None:
        check(Unsupported, q_out_quantized is not None and q_out_quantized.dtype == m.fp8, "fp8 output quant only")
        check(Abort, q.shape[1] % group_size == 0, "group_size must divide N")
        shape_of(Abort, "q_out_quantized", q_out_quantized, *q.shape)
        check(Abort, q_out_scale.dtype == torch.float32, "q_out_scale is fp32")
        grouped(m, q_out_quantized, q_out_scale, y, group_size, transpose_scale)
    else:
        check(Unsupported, q_out_unquantized is not None, "q_out_unquantized must be provided")
    _second_norm(k_out, k, k_weight, k_epsilon, gemma_norm)


@function
def fused_qk_rmsnorm_per_token_quant(
    m: Machine, q_out_quantized: Tensor, q_out_scale: Tensor, q: Tensor, q_weight: Tensor, q_epsilon: float, **rest: Any
) -> None:
    check(Unsupported, q_out_quantized.dtype == m.fp8, "fp8 output quant only")
    shape_of(Unsupported, "q_out_scale", q_out_scale, len(q), 1)
    fused_qk_rmsnorm_group_quant(m, q_out_quantized, q_out_scale, q, q_weight, q_epsilon, group_size=q.shape[1], **rest)


@function
def fused_qk_rmsnorm(
    m: Machine,
    q_out_quantized: Tensor | None,
    q_out_scale: Tensor | None,
    q: Tensor,
    q_weight: Tensor,
    q_epsilon: float,
    q_out_unquantized: Tensor | None,
    k_out: Tensor | None,
    q_res_out: Tensor | None,
    k: Tensor | None,
    k_weight: Tensor | None,
    k_epsilon: float | None,
    q_residual: Tensor | None,
    gemma_norm: bool,
    quant_type: int,
    group_size: int | None,
    transpose_scale: bool,
) -> None:
    """With quant_type No only the two norms, and gemma_norm is dropped."""
    if quant_type == 0:
        check(Unsupported, k is not None and q_out_quantized is not None, "both norms are written")
        _pair(m, q, q_weight, k, k_weight, k_out)
        check(Abort, q_out_quantized.dtype == q.dtype and q_out_quantized.shape == q.shape, "q_out")
        words(q_out_quantized, "q_out")
        q_out_quantized.copy_(normed(q, q_weight, q_epsilon))
        _second_norm(k_out, k, k_weight, k_epsilon, False)
        return
    tensors = (q_out_quantized, q_out_scale, q, q_weight, q_epsilon, q_out_unquantized, k_out, q_res_out)
    rest = (k, k_weight, k_epsilon, q_residual)
    check(Unsupported, quant_type != 1, "per_tensor quant not supported")
    size = q.shape[1] if quant_type == 2 else group_size or (32 if quant_type == 3 else 128)
    fused_qk_rmsnorm_group_quant(m, *tensors, *rest, size, transpose_scale, gemma_norm)
