"""RMSNorm, then FP8 quantisation with one scale for `group_size` neighbours of a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

from .samples import FP32, residual_for, row_inputs

TAILS: tuple[tuple[str, dict[str, object]], ...] = (
    ("col scales", {"scale_layout": "col"}),
    ("TMA scales", {"scale_layout": "col_tma4"}),
    ("power-of-two scales", {"ue8m0": True}),
    ("groups of 64, fnuz", {"group_size": 64, "dtype": torch.float8_e4m3fnuz}),
)
"""Every variant of the tail that group-quantising ops share."""


def group_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make, odd=False):
        yield Sample(name, (x, make.weight(x.shape[-1], x.dtype), 1e-6), size=size)
    x, weight = make.normal(6, 384, dtype=FP32), make.weight(384, FP32)
    for name, tail in TAILS:
        yield Sample(name, (x, weight, 1e-6), dict(tail))


def _check(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    group_size: int,
    dtype: torch.dtype | None,
    scale_layout: str,
    ue8m0: bool,
) -> None:
    f.rows("rms_norm_group_quant", "x", x)
    f.vector("rms_norm_group_quant", "weight", weight, x)
    f.grouped("rms_norm_group_quant", x.shape[-1], group_size, dtype)


@op(
    "norm",
    samples=group_samples,
    results=("q", "scale"),
    strided=("scale",),
    inline=True,
    check=_check,
    flops=lambda x, *rest: 7 * x.numel(),
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
    """`rms_norm`, then `group_quant`; the normalised row stays fp32 in between.

    x: [..., N]. Returns q [..., N] and scale [..., N/group_size] fp32, laid out as `group_quant` says.
    Raises as both of them.
    """
    return f.quantise_groups(f.weighted_rms(x, weight, eps), group_size, dtype, scale_layout, ue8m0)


def add_group_samples(make: Make) -> Iterator[Sample]:
    for sample in group_samples(make):
        x, *rest = sample.args
        yield Sample(sample.name, (x, residual_for(make, x), *rest), sample.kwargs, sample.size)


def _add_check(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    group_size: int,
    dtype: torch.dtype | None,
    scale_layout: str,
    ue8m0: bool,
) -> None:
    f.rows("add_rms_norm_group_quant", "x", x)
    f.same("add_rms_norm_group_quant", "residual", residual, "x", x)
    f.vector("add_rms_norm_group_quant", "weight", weight, x)
    f.grouped("add_rms_norm_group_quant", x.shape[-1], group_size, dtype)


@op(
    "norm",
    samples=add_group_samples,
    results=("q", "scale", "h"),
    strided=("scale",),
    inline=True,
    check=_add_check,
    flops=lambda x, *rest: 8 * x.numel(),
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
    """Residual addition, then `rms_norm_group_quant` of the rounded sum.

    x, residual: [..., N], one dtype. Returns q, scale and h = x + residual in x's dtype.
    """
    h = f.add(x, residual)
    q, scale = f.quantise_groups(f.weighted_rms(h, weight, eps), group_size, dtype, scale_layout, ue8m0)
    return q, scale, h


def gated_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make, odd=False):
        width = x.shape[-1]
        yield Sample(name, (x, make.weight(width, x.dtype), None, residual_for(make, x), 1e-6), size=size)
    x, weight, bias, z = (
        make.normal(6, 256, dtype=FP32),
        make.weight(256, FP32),
        make.normal(256, dtype=FP32),
        make.normal(6, 256, dtype=FP32),
    )
    yield Sample("bias", (x, weight, bias, z, 1e-6))
    yield Sample("gate before norm", (x, weight, bias, z, 1e-6), {"norm_before_gate": False})
    yield Sample("sigmoid", (x, weight, None, z, 1e-6), {"activation": "sigmoid"})
    for name, tail in TAILS:
        yield Sample(name, (x, weight, None, z, 1e-6), dict(tail))


def _gated_check(
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
) -> None:
    f.rows("gated_rms_norm_group_quant", "x", x)
    f.vector("gated_rms_norm_group_quant", "weight", weight, x)
    f.vector("gated_rms_norm_group_quant", "bias", bias, x)
    f.same("gated_rms_norm_group_quant", "z", z, "x", x)
    f.grouped("gated_rms_norm_group_quant", x.shape[-1], group_size, dtype)


@op(
    "norm",
    samples=gated_samples,
    results=("q", "scale"),
    strided=("scale",),
    inline=True,
    check=_gated_check,
    tolerance=Tolerance(fp32=32 * 2.0**-23),
    flops=lambda x, *rest: 12 * x.numel(),
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
    """RMSNorm with a gate (Mamba-2's gated norm, arXiv:2405.21060; Qwen3-Next), then `group_quant`.

    norm_before_gate: y = (rms_norm(x)·weight + bias) · act(z); else y = rms_norm(x · act(z))·weight + bias.
    x, z: [..., N], one dtype. weight, bias: [N] or None. y stays fp32 until quantised.
    Returns q [..., N] and scale [..., N/group_size] fp32.
    """
    z32 = z.float().contiguous()
    gate = F.silu(z32) if activation == "silu" else torch.sigmoid(z32)
    y = f.weighted_rms(x if norm_before_gate else x.float() * gate, weight, eps)
    y = y if bias is None else y + bias.float()
    return f.quantise_groups(y * gate if norm_before_gate else y, group_size, dtype, scale_layout, ue8m0)
