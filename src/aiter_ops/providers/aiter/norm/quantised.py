"""RMSNorm, then quantisation: per token by HIP, with a given scale and by group by Triton."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core import platforms
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.formulas import SCALE_FLOOR
from aiter_ops.providers.aiter import PROVIDER, limits
from aiter_ops.providers.aiter.call import entry, mend_zero_rows, needs, rows, shaped_scale, since

from .plain import FP32_FROM, HIP_WIDEST, RMSNORM


def _dynamic_limits(
    x: Tensor, weight: Tensor | None, dtype: torch.dtype | None, fp32: bool, machine: Platform
) -> str | None:
    return (
        limits.half(x, fp32, FP32_FROM)
        or limits.own_dtype(weight, x)
        or limits.words(x, 4)
        or limits.codes(dtype, machine)
        or limits.addressable(x)
    )


def _dynamic(machine: Platform) -> Predicate:
    fp32 = since(machine, FP32_FROM)

    def refuse(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None) -> str | None:
        return _dynamic_limits(x, weight, dtype, fp32, machine)

    return refuse


def _add_dynamic(machine: Platform) -> Predicate:
    fp32 = since(machine, FP32_FROM)

    def refuse(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None) -> str | None:
        return limits.exact_sum(x) or _dynamic_limits(x, weight, dtype, fp32, machine)

    return refuse


def _floored(x: Tensor) -> bool:
    """Whether AITER takes its HIP kernel, which floors a row's largest value at 1e-10; others divide zero by zero."""
    return x.dtype in limits.HALF and x.shape[-1] <= HIP_WIDEST and since(platforms.platform(), "0.1.10.post1")


@PROVIDER.implements(
    "rms_norm_dynamic_quant",
    requires=needs("0.1.5.post4", "rmsnorm2d_fwd_with_dynamicquant"),
    refuses=_dynamic,
    flag=RMSNORM,
)
def rms_norm_dynamic_quant(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/rmsnorm.py, rmsnorm2d_fwd_with_dynamicquant, 0.1.5.post4-0.1.20.

    In 0.1.5 its last argument has a default in the torch schema and none in the extension: no call reaches it.
    """
    assert weight is not None
    flat = rows(x)
    q = torch.empty(flat.shape, dtype=dtype, device=x.device)
    scale = torch.empty((flat.shape[0], 1), dtype=torch.float32, device=x.device)
    entry("rmsnorm2d_fwd_with_dynamicquant")(q, flat, scale, weight.contiguous(), epsilon=eps)
    if not _floored(flat):
        mend_zero_rows(q, scale)
    return q.view(x.shape), scale.view(*x.shape[:-1], 1)


@PROVIDER.implements(
    "add_rms_norm_dynamic_quant",
    requires=needs("0.1.5.post4", "rmsnorm2d_fwd_with_add_dynamicquant"),
    refuses=_add_dynamic,
    flag=RMSNORM,
)
def add_rms_norm_dynamic_quant(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """AITER aiter/ops/rmsnorm.py, rmsnorm2d_fwd_with_add_dynamicquant, 0.1.5.post4-0.1.20 (0.1.5: as above)."""
    assert weight is not None
    flat = rows(x)
    q, h = torch.empty(flat.shape, dtype=dtype, device=x.device), torch.empty_like(flat)
    scale = torch.empty((flat.shape[0], 1), dtype=torch.float32, device=x.device)
    entry("rmsnorm2d_fwd_with_add_dynamicquant")(q, flat, rows(residual), h, scale, weight.contiguous(), epsilon=eps)
    if not _floored(flat):
        mend_zero_rows(q, scale)
    return q.view(x.shape), scale.view(*x.shape[:-1], 1), h.view(x.shape)


def _fused_limits(x: Tensor, weight: Tensor | None, dtype: torch.dtype | None, machine: Platform) -> str | None:
    return (
        limits.present(weight)
        or limits.fp8(dtype, machine)
        or limits.at_most(x.shape[-1], limits.TRITON_WIDEST)
        or limits.addressable(x)
    )


def _static(machine: Platform) -> Predicate:
    def refuse(x: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None) -> str | None:
        return _fused_limits(x, weight, dtype, machine)

    return refuse


def _add_static(machine: Platform) -> Predicate:
    def refuse(
        x: Tensor, residual: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None
    ) -> str | None:
        return limits.exact_sum(x) or _fused_limits(x, weight, dtype, machine)

    return refuse


def _fused_static(
    x: Tensor, residual: Tensor | None, weight: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    q, _, _, h = entry("fused_rms_fp8_per_tensor_static_quant")(
        rows(x),
        weight.contiguous(),
        inp1_epsilon=eps,
        inp1_scale=scale.reshape(1),
        dtype_quant=dtype,
        res1=None if residual is None else rows(residual),
    )
    return q, h


@PROVIDER.implements(
    "rms_norm_static_quant",
    requires=needs("0.1.6.post2", "fused_rms_fp8_per_tensor_static_quant"),
    refuses=_static,
    flag=RMSNORM,
)
def rms_norm_static_quant(
    x: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """AITER aiter/ops/triton/quant/fused_fp8_quant.py, fused_rms_fp8_per_tensor_static_quant, 0.1.6.post2-0.1.20."""
    assert weight is not None
    assert dtype is not None
    return _fused_static(x, None, weight, scale, eps, dtype)[0].view(x.shape)


@PROVIDER.implements(
    "add_rms_norm_static_quant",
    requires=needs("0.1.6.post2", "fused_rms_fp8_per_tensor_static_quant"),
    refuses=_add_static,
    flag=RMSNORM,
)
def add_rms_norm_static_quant(
    x: Tensor, residual: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/triton/quant/fused_fp8_quant.py, fused_rms_fp8_per_tensor_static_quant, 0.1.6.post2-0.1.20."""
    assert weight is not None
    assert dtype is not None
    q, h = _fused_static(x, residual, weight, scale, eps, dtype)
    assert h is not None
    return q.view(x.shape), h.view(x.shape)


def _group_limits(
    x: Tensor,
    weight: Tensor | None,
    group_size: int,
    dtype: torch.dtype | None,
    layout: str,
    ue8m0: bool,
    machine: Platform,
) -> str | None:
    return (
        _fused_limits(x, weight, dtype, machine)
        or limits.scales(x, layout, ue8m0)
        or limits.power_of_two(group_size, "group_size")
    )


def _group(machine: Platform) -> Predicate:
    def refuse(
        x: Tensor,
        weight: Tensor | None,
        eps: float,
        group_size: int,
        dtype: torch.dtype | None,
        scale_layout: str,
        ue8m0: bool,
    ) -> str | None:
        return _group_limits(x, weight, group_size, dtype, scale_layout, ue8m0, machine)

    return refuse


def _add_group(machine: Platform) -> Predicate:
    def refuse(
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        eps: float,
        group_size: int,
        dtype: torch.dtype | None,
        scale_layout: str,
        ue8m0: bool,
    ) -> str | None:
        return limits.exact_sum(x) or _group_limits(x, weight, group_size, dtype, scale_layout, ue8m0, machine)

    return refuse


def _fused_group(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    dtype: torch.dtype | None,
    layout: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    (q, scale), _, _, h = entry("fused_rms_fp8_group_quant")(
        rows(x),
        weight.contiguous(),
        inp1_epsilon=eps,
        group_size=group_size,
        dtype_quant=dtype,
        res1=None if residual is None else rows(residual),
        transpose_scale=layout != "row",
    )
    return q, shaped_scale(scale, x.shape, layout), h


@PROVIDER.implements(
    "rms_norm_group_quant", requires=needs("0.1.6.post2", "fused_rms_fp8_group_quant"), refuses=_group, flag=RMSNORM
)
def rms_norm_group_quant(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/triton/quant/fused_fp8_quant.py, fused_rms_fp8_group_quant, 0.1.6.post2-0.1.20."""
    assert weight is not None
    q, scale, _ = _fused_group(x, None, weight, eps, group_size, dtype, scale_layout)
    return q.view(x.shape), scale


@PROVIDER.implements(
    "add_rms_norm_group_quant",
    requires=needs("0.1.6.post2", "fused_rms_fp8_group_quant"),
    refuses=_add_group,
    flag=RMSNORM,
)
def add_rms_norm_group_quant(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """AITER aiter/ops/triton/quant/fused_fp8_quant.py, fused_rms_fp8_group_quant, 0.1.6.post2-0.1.20."""
    assert weight is not None
    q, scale, h = _fused_group(x, residual, weight, eps, group_size, dtype, scale_layout)
    assert h is not None
    return q.view(x.shape), scale, h.view(x.shape)


def _gated(machine: Platform) -> Predicate:
    def refuse(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        z: Tensor,
        eps: float,
        norm_before_gate: bool,
        activation: str,
        group_size: int,
        dtype: torch.dtype | None,
        scale_layout: str,
        ue8m0: bool,
    ) -> str | None:
        return (
            limits.present(weight)
            or limits.fp8(dtype, machine)
            or limits.at_most(x.shape[-1] * x.element_size(), 65536, "bytes of a row")
            or limits.scales(x, scale_layout, ue8m0, transposes=False, powers=True)
            or limits.addressable(x)
        )

    return refuse


@PROVIDER.implements(
    "gated_rms_norm_group_quant",
    requires=needs("0.1.13", "fused_rms_gated_fp8_group_quant"),
    refuses=_gated,
    flag=RMSNORM,
)
def gated_rms_norm_group_quant(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    z: Tensor,
    eps: float,
    norm_before_gate: bool = True,
    activation: Literal["silu", "sigmoid"] = "silu",
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/triton/quant/fused_fp8_quant.py, fused_rms_gated_fp8_group_quant, 0.1.13-0.1.20.

    Left alone it scales to 224 for e4m3fnuz, as vLLM does, and floors scales at 1/(largest code * 512): both are
    given here as the op has them.
    """
    assert weight is not None
    assert dtype is not None
    top = torch.finfo(dtype).max
    q, scale = entry("fused_rms_gated_fp8_group_quant")(
        rows(x),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        rows(z),
        eps=eps,
        norm_before_gate=norm_before_gate,
        use_ue8m0=ue8m0,
        activation=activation,
        out_dtype=dtype,
        fp8_min=-top,
        fp8_max=top,
        fp8_min_scaling_factor=SCALE_FLOOR,
        group_size=group_size,
    )
    return q.view(x.shape), shaped_scale(scale, x.shape, "row")
