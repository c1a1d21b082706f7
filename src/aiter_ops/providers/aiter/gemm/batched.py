"""Batched products of latent attention (MLA) by AITER's Triton kernels; two quantise their activations inside."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.compare import Tolerance
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.aiter import PROVIDER, limits
from aiter_ops.providers.aiter.call import entry, needs

from .a16w16 import TRITON_GEMM
from .mx import GFX950, quantises, whole_blocks

FP8BMM = "VLLM_ROCM_USE_AITER_FP8BMM"
FP4BMM = "VLLM_ROCM_USE_AITER_FP4BMM"
GROUPED = "batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant"


def _sizes(x: Tensor, w: Tensor) -> str | None:
    reach = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (
        limits.within_31_bits(reach)
        or limits.addressable(w)
        or limits.within_31_bits(x.shape[0] * x.shape[1] * w.shape[1], "elements of the result")
    )


def _plain(platform: Platform) -> Predicate:
    def refuse(
        x: Tensor, w: Tensor, bias: Tensor | None, transpose_bm: bool, out_dtype: torch.dtype | None
    ) -> str | None:
        return limits.half(x) or limits.writes(out_dtype or x.dtype, limits.HALF, "batched_gemm_bf16") or _sizes(x, w)

    return refuse


@PROVIDER.implements("bmm_a16w16", requires=needs("0.1.5", "batched_gemm_bf16"), refuses=_plain, flag=TRITON_GEMM)
def bmm_a16w16(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    transpose_bm: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """AITER aiter/ops/triton/gemm/batched/batched_gemm_bf16.py, batched_gemm_bf16, 0.1.5-0.1.20; 16-bit factors of one
    type. It adds the bias [B, 1, N] after rounding to the bias's type: fp32 keeps it.
    """
    added = None if bias is None else bias.float().unsqueeze(1).contiguous()
    y: Tensor = entry("batched_gemm_bf16")(x.contiguous(), w.contiguous(), bias=added, dtype=out_dtype or x.dtype)
    return y.transpose(0, 1).clone(memory_format=torch.contiguous_format) if transpose_bm else y


def _fp8(platform: Platform) -> Predicate:
    def refuse(
        x: Tensor,
        w: Tensor,
        w_scale: Tensor,
        group_size: int,
        bias: Tensor | None,
        transpose_bm: bool,
        out_dtype: torch.dtype | None,
    ) -> str | None:
        return (
            limits.half(x)
            or limits.takes_fp8(w.dtype, platform)
            or limits.one_of(group_size, (32, 64, 128), "group_size", "AITER's batched_gemm_a8w8")
            or limits.writes(out_dtype or x.dtype, limits.HALF, "batched_gemm_a8w8")
            or _sizes(x, w)
        )

    return refuse


NEIGHBOURS = Tolerance(fp32=2**-4)
"""x · (1 / scale) in place of x / scale: up to 2 codes of 100 are one step off (a step is 1/8 to 1/16 of a code), which is up
to 3.7 % of the largest number of a row of the samples."""


@PROVIDER.implements(
    "bmm_a8w8_group_prequant", requires=needs("0.1.5", GROUPED), refuses=_fp8, flag=FP8BMM, tolerance=NEIGHBOURS
)
def bmm_a8w8_group_prequant(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    group_size: int = 128,
    bias: Tensor | None = None,
    transpose_bm: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """AITER aiter/ops/triton/gemm/batched/batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant.py,
    0.1.5-0.1.20, with strides of x as they are. It rounds the product to the bias's type before it adds: fp32 keeps it.
    It multiplies x by the reciprocal of its scale, so that some codes are their neighbours.
    """
    added = None if bias is None else bias.float().unsqueeze(1).contiguous()
    return entry(GROUPED)(  # type: ignore[no-any-return]
        x,
        w.contiguous(),
        w_scale.reshape(1),
        group_size=group_size,
        bias=added,
        dtype=out_dtype or x.dtype,
        transpose_bm=transpose_bm,
    )


def _mxfp4(platform: Platform) -> Predicate:
    def refuse(
        x: Tensor, w: Tensor, w_scale: Tensor, transpose_bm: bool, out_dtype: torch.dtype | None, prequant: bool
    ) -> str | None:
        return (
            quantises(prequant, "batched_gemm_a16wfp4")
            or limits.half(x)
            or limits.writes(out_dtype or x.dtype, limits.HALF, "batched_gemm_a16wfp4")
            or whole_blocks(x.shape[-1])
            or _sizes(x, w)
        )

    return refuse


@PROVIDER.implements(
    "bmm_a16wfp4", requires=needs("0.1.8", "batched_gemm_a16wfp4", archs=GFX950), refuses=_mxfp4, flag=FP4BMM
)
def bmm_a16wfp4(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    transpose_bm: bool = False,
    out_dtype: torch.dtype | None = None,
    prequant: bool = False,
) -> Tensor:
    """AITER aiter/ops/triton/gemm/batched/batched_gemm_a16wfp4.py, batched_gemm_a16wfp4, 0.1.8-0.1.20."""
    return entry("batched_gemm_a16wfp4")(  # type: ignore[no-any-return]
        x,
        w.contiguous(),
        w_scale.contiguous(),
        dtype=out_dtype or x.dtype,
        transpose_bm=transpose_bm,
        prequant=True,
    )
