"""Matrix products: A [M, K], B [N, K], Y = A·Bᵀ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import aiter_ops as ops

from ..table import face, only

SHUFFLED = "shuffled_16x16"
TUNING = "the layer picks tiles and splits itself"


@face("gemm_a8w8", row=13, op="rocm_aiter_w8a8_gemm", methods=("w8a8_gemm", "gemm_a8w8"))
def w8a8_gemm(
    A: Tensor, B: Tensor, As: Tensor, Bs: Tensor, bias: Tensor | None = None, output_dtype: torch.dtype = torch.float16
) -> Tensor:
    """(A·Bᵀ) ⊙ scales + bias of int8 or FP8 codes."""
    return ops.gemm_a8w8(A, B, As, Bs, bias, output_dtype)


@face("gemm_a8w8", row=14, op="_rocm_aiter_preshuffled_per_token_w8a8_gemm")
def preshuffled_per_token_w8a8_gemm(
    A: Tensor, B: Tensor, As: Tensor, Bs: Tensor, bias: Tensor | None = None, output_dtype: torch.dtype = torch.float16
) -> Tensor:
    """Row 13 with B in the order of `shuffle_weight`; the bias is added before the one rounding."""
    return ops.gemm_a8w8(A, B, As, Bs, bias, output_dtype, SHUFFLED)


@face("gemm_a8w8", row=15, op="rocm_aiter_hipb_mm_fp8")
def hipb_mm_fp8(
    A: Tensor,
    B: Tensor,
    As: Tensor,
    Bs: Tensor,
    bias: Tensor | None = None,
    output_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Row 14 with B [K, N], the transposed view of a shuffled weight [N, K]."""
    return ops.gemm_a8w8(A, B.t(), As, Bs, bias, output_dtype, SHUFFLED)


@face("gemm_a8w8_blockscale", row=16, op="rocm_aiter_triton_gemm_a8w8_blockscale", methods=())
def rocm_triton_gemm_a8w8_blockscale(
    A: Tensor, B: Tensor, As: Tensor, Bs: Tensor, output_dtype: torch.dtype = torch.float16
) -> Tensor:
    """Scales for 1×128 of A and 128×128 of B."""
    return ops.gemm_a8w8_blockscale(A, B, As, Bs, out_dtype=output_dtype)


@face("gemm_a8w8_blockscale", row=17, op="rocm_aiter_gemm_a8w8_blockscale", methods=())
def rocm_gemm_a8w8_blockscale(
    A: Tensor, B: Tensor, As: Tensor, Bs: Tensor, output_dtype: torch.dtype = torch.float16
) -> Tensor:
    """As row 16; which provider computes it is the policy's matter."""
    return ops.gemm_a8w8_blockscale(A, B, As, Bs, out_dtype=output_dtype)


@face("gemm_a8w8_blockscale", methods=("gemm_a8w8_blockscale", "triton_gemm_a8w8_blockscale"))
def gemm_a8w8_blockscale(
    A: Tensor,
    B: Tensor,
    As: Tensor,
    Bs: Tensor,
    block_size: list[int],
    output_dtype: torch.dtype = torch.float16,
) -> Tensor:
    """Scales for blocks of block_size [rows, columns] of B, and for as many columns of A."""
    return ops.gemm_a8w8_blockscale(A, B, As, Bs, out_dtype=output_dtype, block=list(block_size))


@face("gemm_a8w8_blockscale", row=18, op="rocm_aiter_gemm_a8w8_blockscale_bpreshuffle")
def gemm_a8w8_blockscale_bpreshuffle(
    A: Tensor, B: Tensor, As: Tensor, Bs: Tensor, output_dtype: torch.dtype = torch.float16
) -> Tensor:
    """Row 17 with B in the order of `shuffle_weight`. As [M, K/128] is read by its strides."""
    return ops.gemm_a8w8_blockscale(A, B, As, Bs, out_dtype=output_dtype, layout=SHUFFLED)


@face("gemm_a8w8_blockscale", row=38, op="rocm_aiter_triton_gemm_a8w8_blockscale_preshuffle", methods=())
def rocm_triton_gemm_a8w8_blockscale_preshuffle(
    A: Tensor, B: Tensor, As: Tensor, Bs: Tensor, output_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """As row 18, bf16 unless asked otherwise."""
    return ops.gemm_a8w8_blockscale(A, B, As, Bs, out_dtype=output_dtype, layout=SHUFFLED)


@face("gemm_a8w8_blockscale")
def triton_gemm_a8w8_blockscale_preshuffle(
    A: Tensor, B: Tensor, As: Tensor, Bs: Tensor, block_size: list[int], output_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Row 38 with blocks of block_size."""
    return ops.gemm_a8w8_blockscale(A, B, As, Bs, out_dtype=output_dtype, layout=SHUFFLED, block=list(block_size))


@face("gemm_a8wfp4", row=19, op="rocm_aiter_gemm_a8wfp4")
def gemm_a8wfp4(x: Tensor, w: Tensor, x_scales: Tensor, w_scales: Tensor, out_dtype: torch.dtype) -> Tensor:
    """x FP8 [M, K] with a scale a row, w packed MXFP4 [N, K/2] with E8M0 scales [N, K/32]."""
    return ops.gemm_a8wfp4(x, w, x_scales, w_scales, out_dtype)


@face("mxfp4_quant", "gemm_a4w4")
def triton_fp4_gemm_dynamic_quant(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype | None = torch.bfloat16,
    x_scales: Tensor | None = None,
) -> Tensor:
    """x, quantised to MXFP4 unless it is packed with x_scales, times weight [N, K/2]; weight_scale [K/32, N]."""
    if x_scales is None:
        x, x_scales = ops.mxfp4_quant(x)
    return ops.gemm_a4w4(x, weight, x_scales, weight_scale.t(), None, out_dtype)


def _into(y: Tensor, out: Tensor | None) -> Tensor:
    return y if out is None else out.copy_(y)


@face("bmm_a16wfp4")
def batched_gemm_a16wfp4(
    X: Tensor,
    W: Tensor,
    w_scale: Tensor,
    Y: Tensor | None = None,
    transpose_bm: bool | None = False,
    prequant: bool | None = False,
    y_scale: Tensor | None = None,
) -> Tensor:
    """X [B, M, K] bf16 times MXFP4 W [B, N, K/2]; bf16, or written to Y and returned in its dtype."""
    only("batched_gemm_a16wfp4", "y_scale", y_scale, (None,), "the result is not quantised")
    dtype = torch.bfloat16 if Y is None else Y.dtype
    return _into(ops.bmm_a16wfp4(X, W, w_scale, bool(transpose_bm), dtype, bool(prequant)), Y)


@face("bmm_a8w8_group_prequant")
def triton_fp8_bmm(
    X: Tensor,
    WQ: Tensor,
    w_scale: Tensor,
    group_size: int = 128,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = torch.bfloat16,
    splitK: int | None = None,
    YQ: Tensor | None = None,
    transpose_bm: bool | None = False,
    config: dict[str, Any] | None = None,
) -> Tensor:
    """X [B, M, K], group-quantised inside, times FP8 WQ [B, N, K]; bias [B, 1, N] or [B, N]."""
    only("triton_fp8_bmm", "splitK", splitK, (None, 1), TUNING)
    only("triton_fp8_bmm", "config", config, (None,), TUNING)
    bias = bias.squeeze(1) if bias is not None and bias.dim() == 3 else bias
    dtype = dtype if YQ is None else YQ.dtype
    return _into(ops.bmm_a8w8_group_prequant(X, WQ, w_scale, group_size, bias, bool(transpose_bm), dtype), YQ)
