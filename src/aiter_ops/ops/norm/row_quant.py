"""RMSNorm, then quantisation with one scale a row (dynamic) or one given scale (static)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

from .samples import FP32, residual_for, row_inputs


def dynamic_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make):
        yield Sample(name, (x, make.weight(x.shape[-1], x.dtype), 1e-6), size=size)
    x, weight = make.normal(5, 384, dtype=FP32), make.weight(384, FP32)
    yield Sample("int8", (x, weight, 1e-6), {"dtype": torch.int8})
    yield Sample("fnuz", (x, weight, 1e-6), {"dtype": torch.float8_e4m3fnuz})


def _dynamic_check(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None) -> None:
    f.rows("rms_norm_dynamic_quant", "x", x)
    f.vector("rms_norm_dynamic_quant", "weight", weight, x)
    f.code_dtype("rms_norm_dynamic_quant", dtype)


@op(
    "norm",
    samples=dynamic_samples,
    results=("q", "scale"),
    inline=True,
    check=_dynamic_check,
    flops=lambda x, *rest: 7 * x.numel(),
)
def rms_norm_dynamic_quant(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """`rms_norm`, then `per_token_quant`; the normalised row stays fp32 in between.

    x: [..., N]. dtype: FP8 (None: this machine's) or int8. Returns q [..., N] and scale [..., 1] fp32.
    Raises as both of them.
    """
    return f.quantise_rows(f.weighted_rms(x, weight, eps), dtype)


def add_dynamic_samples(make: Make) -> Iterator[Sample]:
    for sample in dynamic_samples(make):
        x, *rest = sample.args
        yield Sample(sample.name, (x, residual_for(make, x), *rest), sample.kwargs, sample.size)


def _add_dynamic_check(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None
) -> None:
    f.rows("add_rms_norm_dynamic_quant", "x", x)
    f.same("add_rms_norm_dynamic_quant", "residual", residual, "x", x)
    f.vector("add_rms_norm_dynamic_quant", "weight", weight, x)
    f.code_dtype("add_rms_norm_dynamic_quant", dtype)


@op(
    "norm",
    samples=add_dynamic_samples,
    results=("q", "scale", "h"),
    inline=True,
    check=_add_dynamic_check,
    flops=lambda x, *rest: 8 * x.numel(),
)
def add_rms_norm_dynamic_quant(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual addition, then `rms_norm_dynamic_quant` of the rounded sum.

    x, residual: [..., N], one dtype. Returns q [..., N], scale [..., 1] fp32 and h = x + residual in x's dtype.
    """
    h = f.add(x, residual)
    return *f.quantise_rows(f.weighted_rms(h, weight, eps), dtype), h


def static_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make):
        scale = torch.tensor([0.01], device=make.device)
        yield Sample(name, (x, make.weight(x.shape[-1], x.dtype), scale, 1e-6), size=size)
    x, weight = make.normal(5, 384, dtype=FP32), make.weight(384, FP32)
    saturating = torch.tensor(0.002, device=make.device)
    yield Sample("saturating, scalar scale", (x, weight, saturating, 1e-6))
    yield Sample("fnuz", (x, weight, saturating, 1e-6), {"dtype": torch.float8_e4m3fnuz})


def _static_check(x: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None) -> None:
    f.rows("rms_norm_static_quant", "x", x)
    f.vector("rms_norm_static_quant", "weight", weight, x)
    f.one_scale("rms_norm_static_quant", "scale", scale)
    f.code_dtype("rms_norm_static_quant", dtype, f.FP8)


@op(
    "norm",
    samples=static_samples,
    results=("q",),
    inline=True,
    check=_static_check,
    flops=lambda x, *rest: 5 * x.numel(),
)
def rms_norm_static_quant(
    x: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """`rms_norm`, then `per_tensor_quant_static` with the given scale; the normalised row stays fp32 in between.

    x: [..., N]. scale: one fp32 element. dtype: FP8, None: this machine's. Values beyond the format's range saturate.
    Returns q [..., N].
    """
    return f.encode(f.weighted_rms(x, weight, eps), scale.reshape(()), dtype)


def add_static_samples(make: Make) -> Iterator[Sample]:
    for sample in static_samples(make):
        x, *rest = sample.args
        yield Sample(sample.name, (x, residual_for(make, x), *rest), sample.kwargs, sample.size)


def _add_static_check(
    x: Tensor, residual: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None
) -> None:
    f.rows("add_rms_norm_static_quant", "x", x)
    f.same("add_rms_norm_static_quant", "residual", residual, "x", x)
    f.vector("add_rms_norm_static_quant", "weight", weight, x)
    f.one_scale("add_rms_norm_static_quant", "scale", scale)
    f.code_dtype("add_rms_norm_static_quant", dtype, f.FP8)


@op(
    "norm",
    samples=add_static_samples,
    results=("q", "h"),
    inline=True,
    check=_add_static_check,
    flops=lambda x, *rest: 6 * x.numel(),
)
def add_rms_norm_static_quant(
    x: Tensor, residual: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Residual addition, then `rms_norm_static_quant` of the rounded sum. Returns q [..., N] and h in x's dtype."""
    h = f.add(x, residual)
    return f.encode(f.weighted_rms(h, weight, eps), scale.reshape(()), dtype), h
