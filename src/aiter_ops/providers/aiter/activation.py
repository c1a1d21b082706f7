"""Gated activations by AITER: HIP kernels of aiter/ops/activation.py, Triton where the product is quantised.

The plain activations have no sub-flag: vLLM switches them by its master toggle alone. Those that quantise stand
under the flag of quantisation, as the linear layer that reads them does. The HIP module is compiled with
-ffast-math since 0.1.12: NaN and Inf in x need not come out as such. On gfx942 it cuts fp32 to bf16 unless built
with another OPUS_FP32_to_BF16_DEFAULT.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate

from . import PROVIDER, limits
from .call import entry, lacks, needs, rows, shaped_scale, since

LINEAR = "VLLM_ROCM_USE_AITER_LINEAR"
FP32_FROM = "0.1.9.post1"
WIDEST_GROUP = 8192
"""Columns of one group that a program of AITER's Triton kernel holds in registers."""


def _gated(name: str, x: Tensor, **options: float) -> Tensor:
    flat = rows(x)
    out = torch.empty((flat.shape[0], flat.shape[1] // 2), dtype=x.dtype, device=x.device)
    entry(name)(out, flat, **options)
    return out.view(*x.shape[:-1], -1)


def _silu(platform: Platform) -> Predicate:
    fp32, unlimited = since(platform, FP32_FROM), lacks(platform, "silu_and_mul", "limit")

    def refuse(x: Tensor, limit: float | None) -> str | None:
        if limit is not None and unlimited:
            return unlimited
        return limits.half(x, fp32, FP32_FROM) or limits.addressable(x)

    return refuse


def _gelu(platform: Platform) -> Predicate:
    fp32 = since(platform, FP32_FROM)

    def refuse(x: Tensor) -> str | None:
        return limits.half(x, fp32, FP32_FROM) or limits.addressable(x)

    return refuse


@PROVIDER.implements("silu_and_mul", requires=needs("0.1.5", "silu_and_mul"), refuses=_silu)
def silu_and_mul(x: Tensor, limit: float | None = None) -> Tensor:
    """AITER aiter/ops/activation.py, silu_and_mul, 0.1.5-0.1.20; its `limit` (0: none) since 0.1.14."""
    return _gated("silu_and_mul", x) if limit is None else _gated("silu_and_mul", x, limit=limit)


@PROVIDER.implements("gelu_and_mul", requires=needs("0.1.5", "gelu_and_mul"), refuses=_gelu)
def gelu_and_mul(x: Tensor) -> Tensor:
    """AITER aiter/ops/activation.py, gelu_and_mul (the erf form), 0.1.5-0.1.20."""
    return _gated("gelu_and_mul", x)


@PROVIDER.implements("gelu_tanh_and_mul", requires=needs("0.1.5", "gelu_tanh_and_mul"), refuses=_gelu)
def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    """AITER aiter/ops/activation.py, gelu_tanh_and_mul, 0.1.5-0.1.20."""
    return _gated("gelu_tanh_and_mul", x)


def _silu_quant(x: Tensor, group_size: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    q, scale = entry("act_mul_and_fp8_group_quant")(
        rows(x), activation="silu", group_size=group_size, dtype_quant=dtype
    )
    shape = torch.Size((*x.shape[:-1], x.shape[-1] // 2))
    return q.view(shape), shaped_scale(scale, shape, "row")


def _group(platform: Platform) -> Predicate:
    def refuse(x: Tensor, group_size: int, dtype: torch.dtype | None, scale_layout: str, ue8m0: bool) -> str | None:
        return (
            limits.fp8(dtype, platform)
            or limits.scales(x, scale_layout, ue8m0, transposes=False)
            or limits.power_of_two(group_size, "group_size")
            or limits.at_most(group_size, WIDEST_GROUP, "group_size")
            or limits.addressable(x)
        )

    return refuse


@PROVIDER.implements(
    "silu_and_mul_group_quant",
    requires=needs("0.1.6.post2", "act_mul_and_fp8_group_quant"),
    refuses=_group,
    flag=LINEAR,
)
def silu_and_mul_group_quant(
    x: Tensor,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/triton/activation.py, act_mul_and_fp8_group_quant, 0.1.6.post2-0.1.20. Groups below 1e-10: its scale."""
    return _silu_quant(x, group_size, dtype)


def _row(platform: Platform) -> Predicate:
    def refuse(x: Tensor, dtype: torch.dtype | None) -> str | None:
        width = x.shape[-1] // 2
        return (
            limits.fp8(dtype, platform)
            or limits.power_of_two(width, "N/2, the group that is a row")
            or limits.at_most(width, WIDEST_GROUP, "N/2")
            or limits.addressable(x)
        )

    return refuse


@PROVIDER.implements(
    "silu_and_mul_dynamic_quant",
    requires=needs("0.1.6.post2", "act_mul_and_fp8_group_quant"),
    refuses=_row,
    flag=LINEAR,
)
def silu_and_mul_dynamic_quant(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/triton/activation.py, act_mul_and_fp8_group_quant with the row as its group, 0.1.6.post2-0.1.20."""
    return _silu_quant(x, x.shape[-1] // 2, dtype)
