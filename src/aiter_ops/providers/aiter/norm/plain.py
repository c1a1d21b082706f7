"""RMSNorm and layer norm in x's dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.aiter import PROVIDER, limits
from aiter_ops.providers.aiter.call import entry, lacks, needs, rows, since

RMSNORM = "VLLM_ROCM_USE_AITER_RMSNORM"
FP32_FROM = "0.1.18"
"""Opus, the backend of AITER's RMSNorm since then, takes fp32; Composable Kernel before it does not."""
HIP_WIDEST = 8192


def even_rows(x: Tensor) -> str | None:
    """The HIP kernel of 2-byte types writes rows in words of 4 bytes; Opus, which serves fp32, any."""
    return None if x.dtype == torch.float32 else limits.words(x, 2)


def _offset(weight_offset: float, cast: bool, unknown: str | None) -> str | None:
    if weight_offset not in (0.0, 1.0):
        return f"AITER adds 0 or 1 to the weight (gemma_norm), not {weight_offset}"
    if weight_offset and unknown:
        return unknown
    return "AITER's gemma_norm is not taken together with cast_before_weight" if weight_offset and cast else None


def _rms(platform: Platform) -> Predicate:
    fp32, no_offset = since(platform, FP32_FROM), lacks(platform, "rmsnorm", "gemma_norm")

    def refuse(
        x: Tensor, weight: Tensor | None, eps: float, weight_offset: float, cast_before_weight: bool
    ) -> str | None:
        return (
            limits.half(x, fp32 and not weight_offset, FP32_FROM)
            or limits.own_dtype(weight, x)
            or even_rows(x)
            or _offset(weight_offset, cast_before_weight, no_offset)
            or (limits.at_most(x.shape[-1], HIP_WIDEST) if weight_offset else None)
            or limits.addressable(x)
        )

    return refuse


@PROVIDER.implements("rms_norm", requires=needs("0.1.5", "rmsnorm2d_fwd", "rmsnorm"), refuses=_rms, flag=RMSNORM)
def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float = 0.0, cast_before_weight: bool = False
) -> Tensor:
    """AITER aiter/ops/rmsnorm.py, rmsnorm2d_fwd, 0.1.5-0.1.20, whose use_model_sensitive_rmsnorm=1 is
    cast_before_weight; weight_offset=1 by rmsnorm with gemma_norm, 0.1.17-0.1.20 (bf16, fp16, N <= 8192).
    """
    assert weight is not None
    flat = rows(x)
    if weight_offset:
        out = torch.empty_like(flat)
        entry("rmsnorm")(out, flat, weight.contiguous(), epsilon=eps, gemma_norm=True)
    else:
        out = entry("rmsnorm2d_fwd")(
            flat, weight.contiguous(), epsilon=eps, use_model_sensitive_rmsnorm=int(cast_before_weight)
        )
    return out.view(x.shape)


def _add_rms(platform: Platform) -> Predicate:
    fp32, no_offset = since(platform, FP32_FROM), lacks(platform, "rmsnorm2d_fwd_with_add", "gemma_norm")

    def refuse(
        x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float, cast_before_weight: bool
    ) -> str | None:
        return (
            limits.half(x, fp32, FP32_FROM)
            or limits.own_dtype(weight, x)
            or even_rows(x)
            or _offset(weight_offset, cast_before_weight, no_offset)
            # 0.1.17 hands wide rows to Composable Kernel and drops gemma_norm
            or (limits.at_most(x.shape[-1], HIP_WIDEST) if weight_offset and not fp32 else None)
            or limits.addressable(x)
        )

    return refuse


@PROVIDER.implements("add_rms_norm", requires=needs("0.1.5", "rmsnorm2d_fwd_with_add"), refuses=_add_rms, flag=RMSNORM)
def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    weight_offset: float = 0.0,
    cast_before_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/rmsnorm.py, rmsnorm2d_fwd_with_add, 0.1.5-0.1.20.

    Its seventh parameter changed meaning in 0.1.17 (gemma_norm before use_model_sensitive_rmsnorm), so both are
    given by name, and gemma_norm only where it is wanted.
    """
    assert weight is not None
    flat = rows(x)
    y, h = torch.empty_like(flat), torch.empty_like(flat)
    options = {"gemma_norm": True} if weight_offset else {}
    entry("rmsnorm2d_fwd_with_add")(
        y,
        flat,
        rows(residual),
        h,
        weight.contiguous(),
        epsilon=eps,
        use_model_sensitive_rmsnorm=int(cast_before_weight),
        **options,
    )
    return y.view(x.shape), h.view(x.shape)


def _pad(platform: Platform) -> Predicate:
    def refuse(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, pad_to: int) -> str | None:
        width = -(-x.shape[-1] // pad_to) * pad_to
        return limits.present(weight) or limits.at_most(width, limits.TRITON_WIDEST) or limits.addressable(x)

    return refuse


@PROVIDER.implements(
    "add_rms_norm_pad", requires=needs("0.1.6.post2", "fused_add_rmsnorm_pad"), refuses=_pad, flag=RMSNORM
)
def add_rms_norm_pad(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, pad_to: int
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/triton/normalization/fused_add_rmsnorm_pad.py, 0.1.6.post2-0.1.20 (one folder up before 0.1.10)."""
    assert weight is not None
    y, h = entry("fused_add_rmsnorm_pad")(
        rows(x), weight.contiguous(), epsilon=eps, res=rows(residual), x_pad_to_multiple=pad_to
    )
    return y.view(*x.shape[:-1], -1), h.view(x.shape)


def _layer(platform: Platform) -> Predicate:
    def refuse(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> str | None:
        return (
            limits.half(x)
            or limits.own_dtype(weight, x)
            or limits.own_dtype(bias, x, "bias")
            or limits.words(x, 2)
            or limits.addressable(x)
        )

    return refuse


@PROVIDER.implements("layer_norm", requires=needs("0.1.5", "layernorm2d_fwd"), refuses=_layer, flag=RMSNORM)
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """AITER aiter/ops/norm.py, layernorm2d_fwd, 0.1.5-0.1.20 (Composable Kernel)."""
    assert weight is not None
    assert bias is not None
    out: Tensor = entry("layernorm2d_fwd")(rows(x), weight.contiguous(), bias.contiguous(), epsilon=eps)
    return out.view(x.shape)


def _add_layer(platform: Platform) -> Predicate:
    inner = _layer(platform)

    def refuse(x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> str | None:
        return inner(x, weight, bias, eps)

    return refuse


@PROVIDER.implements("add_layer_norm", requires=needs("0.1.5", "layernorm2d_fwd"), refuses=_add_layer, flag=RMSNORM)
def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/norm.py, layernorm2d_fwd, 0.1.5-0.1.20, after an addition by torch: layernorm2d_fwd_with_add
    normalises the sum before it is rounded, and what the mean cancels leaves that difference visible.
    """
    h = x + residual
    return layer_norm(h, weight, bias, eps), h.contiguous()
