"""Products with MXFP4 weights by AITER on gfx950, whose matrix instructions take E2M1 codes and E8M0 scales.

Triton for plain weights; assembly and Composable Kernel for shuffled ones (aiter/ops/gemm_op_a4w4.py). No entry adds a
bias: gemm_a4w4 takes one, which its Composable Kernel path drops.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Call, Predicate
from aiter_ops.ops.layout import padded_scale, scale_shuffled
from aiter_ops.providers.aiter import PROVIDER, limits
from aiter_ops.providers.aiter.call import entry, needs, rows, since

LINEAR = "VLLM_ROCM_USE_AITER_LINEAR"
SHUFFLED_FROM = "0.1.9"
"""gemm_a4w4 allocates its result; before, it wrote into a tensor padded by the caller."""

GFX950 = ("gfx950",)
K_BLOCK = 256
"""K that the kernels read at once; what is beyond K they mask without saying by what."""


def _sizes(a: Tensor, b: Tensor) -> str | None:
    return (
        limits.addressable(a)
        or limits.addressable(b)
        or limits.within_31_bits(a.numel() // a.shape[-1] * b.shape[0], "elements of the result")
    )


def whole_blocks(k: int) -> str | None:
    """Kernels that quantise their activations load scales of whole blocks of K, without a mask (v0.1.8-v0.1.20).

    Their block is at most 512, and no more than the power of two that holds K (aiter/ops/triton/_triton_kernels/gemm).
    """
    if k % 512 == 0 or (64 <= k < 512 and k & (k - 1) == 0):
        return None
    return f"AITER's kernel takes K that is 64, 128, 256 or a multiple of 512; it is {k}"


def quantises(prequant: bool, entry_name: str) -> str | None:
    return None if prequant else f"AITER's {entry_name} rounds its activations to MXFP4 (prequant)"


def _a8(platform: Platform) -> Predicate:
    def refuse(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype | None) -> str | None:
        return (
            limits.takes_fp8(a.dtype, platform)
            or limits.writes(out_dtype or torch.bfloat16, limits.HALF, "gemm_a8wfp4")
            or limits.multiple(a.shape[-1], K_BLOCK, "K")
            or _sizes(a, b)
        )

    return refuse


@PROVIDER.implements("gemm_a8wfp4", requires=needs("0.1.5", "gemm_a8wfp4", archs=GFX950), refuses=_a8, flag=LINEAR)
def gemm_a8wfp4(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """AITER aiter/ops/triton/gemm/basic/gemm_a8wfp4.py, gemm_a8wfp4, 0.1.5-0.1.20; it writes into the tensor given."""
    flat = rows(a)
    y = torch.empty((flat.shape[0], b.shape[0]), dtype=out_dtype or torch.bfloat16, device=a.device)
    entry("gemm_a8wfp4")(flat, b.contiguous(), y, rows(a_scale), b_scale.contiguous(), dtype=y.dtype)
    return y.view(*a.shape[:-1], -1)


def _a16(platform: Platform) -> Predicate:
    def refuse(
        a: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None, prequant: bool
    ) -> str | None:
        return (
            quantises(prequant, "gemm_a16wfp4")
            or limits.half(a, name="a")
            or limits.absent(bias, "bias", "gemm_a16wfp4")
            or limits.writes(out_dtype or a.dtype, limits.HALF, "gemm_a16wfp4")
            or whole_blocks(a.shape[-1])
            or _sizes(a, b)
        )

    return refuse


@PROVIDER.implements("gemm_a16wfp4", requires=needs("0.1.8", "gemm_a16wfp4", archs=GFX950), refuses=_a16, flag=LINEAR)
def gemm_a16wfp4(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    prequant: bool = False,
) -> Tensor:
    """AITER aiter/ops/triton/gemm/basic/gemm_a16wfp4.py, gemm_a16wfp4, 0.1.8-0.1.20; parts of K in order, not atomic."""
    y = entry("gemm_a16wfp4")(
        rows(a), b.contiguous(), b_scale.contiguous(), atomic_add=False, dtype=out_dtype or a.dtype
    )
    return y.view(*a.shape[:-1], -1)  # type: ignore[no-any-return]


def _a4(platform: Platform) -> Predicate:
    shuffles = since(platform, SHUFFLED_FROM)

    def refuse(
        a: Tensor,
        b: Tensor,
        a_scale: Tensor,
        b_scale: Tensor,
        bias: Tensor | None,
        out_dtype: torch.dtype | None,
        layout: str,
    ) -> str | None:
        dtype = out_dtype or torch.bfloat16
        if layout == "plain":
            bounded = limits.writes(dtype, limits.HALF, "gemm_afp4wfp4")
        elif not shuffles:
            bounded = f"AITER's gemm_a4w4 allocates its result since {SHUFFLED_FROM}"
        else:
            bounded = (
                limits.writes(dtype, (torch.bfloat16,), "gemm_a4w4")
                or limits.multiple(b.shape[0], 256, "N of shuffled weights")
                or limits.multiple(2 * b.shape[1], K_BLOCK, "K of shuffled weights")
            )
        return limits.absent(bias, "bias", "gemm_a4w4") or bounded or _sizes(a, b)

    return refuse


@PROVIDER.implements(
    "gemm_a4w4",
    requires=needs("0.1.5", "gemm_afp4wfp4", Call("gemm_a4w4", SHUFFLED_FROM), archs=GFX950),
    refuses=_a4,
    flag=LINEAR,
)
def gemm_a4w4(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
) -> Tensor:
    """plain: AITER aiter/ops/triton/gemm/basic/gemm_afp4wfp4.py, gemm_afp4wfp4, 0.1.5-0.1.20. shuffled:
    aiter/ops/gemm_op_a4w4.py, gemm_a4w4, 0.1.9-0.1.20, which reads scales of whole tiles of 256 rows and 8 columns
    (aiter/utility/fp4_utils.py, e8m0_shuffle): those of a are padded and shuffled here, those of b have whole tiles.
    """
    flat, scale, dtype = rows(a), rows(a_scale), out_dtype or torch.bfloat16
    if layout == "plain":
        y = entry("gemm_afp4wfp4")(flat, b.contiguous(), scale, b_scale.contiguous(), dtype=dtype)
    else:
        scale = scale_shuffled(padded_scale(scale), "shuffled_32x8")
        codes, exponents = torch.float4_e2m1fn_x2, torch.float8_e8m0fnu
        y = entry("gemm_a4w4")(
            flat.view(codes),
            b.contiguous().view(codes),
            scale.view(exponents),
            b_scale.contiguous().view(exponents),
            dtype=dtype,
            bpreshuffle=True,
        )
    return y.view(*a.shape[:-1], b.shape[0])  # type: ignore[no-any-return]
