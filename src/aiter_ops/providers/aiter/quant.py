"""Quantisation by AITER: HIP kernels of aiter/ops/quant.py, and Triton for MXFP4 with even rounding.

Against the references: a scale is AITER's largest value times the reciprocal of the largest code, a unit of 2^-24
apart at most; groups whose values are all below 1e-10 get the scale of 1e-10; maxima are taken with instructions
that may pass over a NaN, so a NaN row need not have a NaN scale.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate

from . import PROVIDER, limits
from .call import entry, mend_zero_rows, needs, rows, shaped_scale, since

LINEAR = "VLLM_ROCM_USE_AITER_LINEAR"
GROUPS = (32, 64, 128)
"""Widths that AITER's row quantiser hands to its group kernel, which floors the largest value at 1e-10."""


def _group(platform: Platform) -> Predicate:
    def refuse(x: Tensor, group_size: int, dtype: torch.dtype | None, scale_layout: str, ue8m0: bool) -> str | None:
        return (
            limits.half(x)
            or limits.one_of(group_size, GROUPS, "group_size", "per_group_quant_hip")
            or limits.fp8(dtype, platform)
            or limits.scales(x, scale_layout, ue8m0)
            or limits.addressable(x)
        )

    return refuse


@PROVIDER.implements("group_quant", requires=needs("0.1.5", "per_group_quant_hip"), refuses=_group, flag=LINEAR)
def group_quant(
    x: Tensor,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/quant.py, per_group_quant_hip, 0.1.5-0.1.20 (get_hip_quant(per_1x128) is it with 128).

    ue8m0 is refused: since 0.1.19 it can write E8M0 bytes, not fp32 powers of two.
    """
    q, scale = entry("per_group_quant_hip")(
        rows(x), quant_dtype=dtype, group_size=group_size, transpose_scale=scale_layout != "row"
    )
    return q.view(x.shape), shaped_scale(scale, x.shape, scale_layout)


def _row(platform: Platform) -> Predicate:
    def refuse(x: Tensor, dtype: torch.dtype | None, scale_upper_bound: Tensor | None) -> str | None:
        if scale_upper_bound is not None:
            return "AITER's kernels take scale_ub and do not use it (0.1.5-0.1.20)"
        return limits.half(x) or limits.codes(dtype, platform) or limits.words(x, 4) or limits.addressable(x)

    return refuse


@PROVIDER.implements(
    "per_token_quant", requires=needs("0.1.5", "dynamic_per_token_scaled_quant"), refuses=_row, flag=LINEAR
)
def per_token_quant(
    x: Tensor, dtype: torch.dtype | None = None, scale_upper_bound: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/quant.py, dynamic_per_token_scaled_quant, 0.1.5-0.1.20; shuffle_scale is off since 0.1.5.

    Its row kernel has no floor: a row of zeros has scale 0 and is divided by it, which is mended here.
    """
    flat = rows(x)
    q = torch.empty(flat.shape, dtype=dtype, device=x.device)
    scale = torch.empty((flat.shape[0], 1), dtype=torch.float32, device=x.device)
    entry("dynamic_per_token_scaled_quant")(q, flat, scale, shuffle_scale=False)
    if flat.shape[1] not in GROUPS:
        mend_zero_rows(q, scale)
    return q.view(x.shape), scale.view(*x.shape[:-1], 1)


def _tensor(platform: Platform) -> Predicate:
    def refuse(x: Tensor, dtype: torch.dtype | None) -> str | None:
        return limits.half(x) or limits.codes(dtype, platform) or limits.words(x, 4) or limits.addressable(x)

    return refuse


@PROVIDER.implements(
    "per_tensor_quant", requires=needs("0.1.5", "dynamic_per_tensor_quant"), refuses=_tensor, flag=LINEAR
)
def per_tensor_quant(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/quant.py, dynamic_per_tensor_quant, 0.1.5-0.1.20. A tensor of zeros is mended as a row of zeros."""
    flat = rows(x)
    q = torch.empty(flat.shape, dtype=dtype, device=x.device)
    scale = torch.empty(1, dtype=torch.float32, device=x.device)
    entry("dynamic_per_tensor_quant")(q, flat, scale)
    mend_zero_rows(q, scale)
    return q.view(x.shape), scale


def _static(platform: Platform) -> Predicate:
    def refuse(x: Tensor, scale: Tensor, dtype: torch.dtype | None) -> str | None:
        return limits.half(x) or limits.codes(dtype, platform) or limits.words(x, 4) or limits.addressable(x)

    return refuse


@PROVIDER.implements(
    "per_tensor_quant_static", requires=needs("0.1.5", "static_per_tensor_quant"), refuses=_static, flag=LINEAR
)
def per_tensor_quant_static(x: Tensor, scale: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """AITER aiter/ops/quant.py, static_per_tensor_quant, 0.1.5-0.1.20."""
    flat = rows(x)
    q = torch.empty(flat.shape, dtype=dtype, device=x.device)
    entry("static_per_tensor_quant")(q, flat, scale.reshape(1))
    return q.view(x.shape)


def _mxfp4(platform: Platform) -> Predicate:
    up = since(platform, "0.1.16")

    def refuse(x: Tensor, rounding: str) -> str | None:
        if rounding == "even":
            return limits.addressable(x)
        if rounding != ("up" if up else "floor"):
            return f"AITER's HIP kernel rounds scales {'up since' if up else 'down before'} 0.1.16, not {rounding!r}"
        return limits.half(x) or limits.addressable(x)

    return refuse


@PROVIDER.implements(
    "mxfp4_quant",
    requires=needs("0.1.5", "dynamic_mxfp4_quant", "per_1x32_f4_quant_hip", archs=("gfx950",)),
    refuses=_mxfp4,
    flag=LINEAR,
)
def mxfp4_quant(x: Tensor, rounding: Literal["floor", "even", "up"] = "even") -> tuple[Tensor, Tensor]:
    """even: AITER aiter/ops/triton/quant (dynamic_mxfp4_quant), 0.1.5-0.1.20; a block with Inf has scale 254 there.
    floor (before 0.1.16), up (since): AITER aiter/ops/quant.py, per_1x32_f4_quant_hip.
    """
    if rounding == "even":
        packed, e8m0 = entry("dynamic_mxfp4_quant")(rows(x), scaling_mode="even")
    else:
        packed, e8m0 = entry("per_1x32_f4_quant_hip")(rows(x), shuffle=False)
    lead = x.shape[:-1]
    return packed.view(torch.uint8).view(*lead, -1), e8m0.view(torch.uint8).contiguous().view(*lead, -1)


def _mxfp8(platform: Platform) -> Predicate:
    def refuse(x: Tensor, rounding: str) -> str | None:
        if rounding != "up":
            return f"AITER's HIP kernel rounds scales up since 0.1.16, not {rounding!r}"
        return limits.half(x) or limits.addressable(x)

    return refuse


@PROVIDER.implements(
    "mxfp8_quant", requires=needs("0.1.16", "per_1x32_mx_quant_hip", archs=("gfx950",)), refuses=_mxfp8, flag=LINEAR
)
def mxfp8_quant(x: Tensor, rounding: Literal["floor", "even", "up"] = "floor") -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/quant.py, per_1x32_mx_quant_hip, 0.1.16-0.1.20 (in 0.1.15 it rounds scales down)."""
    q, e8m0 = entry("per_1x32_mx_quant_hip")(
        rows(x), quant_dtype=torch.float8_e4m3fn, shuffle=False, scale_type=torch.float8_e8m0fnu
    )
    return q.view(x.shape), e8m0.view(torch.uint8).view(*x.shape[:-1], -1)
